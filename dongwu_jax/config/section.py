"""What all sections of a configuration are."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings; immutable once read. Numbers are finite: JSON has no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
