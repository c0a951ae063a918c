"""How rotary positions are stretched beyond the length a model was trained on."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dongwu_jax.config.section import Section


class RopeScaling(Section):
    """How rotary positions are stretched beyond the length a model was trained on."""

    type: Literal["linear", "ntk", "yarn", "llama3"] = Field(
        "linear",
        description="linear: Position Interpolation, positions divided by `factor`; ntk: a larger "
        "base that leaves the fastest pair as it is and slows the slowest by `factor`; yarn: "
        "slow pairs divided, fast ones kept, attention sharpened; llama3: as yarn with other "
        "bounds, attention as it is",
    )
    factor: Annotated[float, Field(ge=1.0)] = Field(
        description="new context length / original context length, e.g. 8 for 4k -> 32k"
    )
    original_max_position_embeddings: PositiveInt | None = Field(
        None,
        description="yarn, llama3: the original context length; null: "
        "max_position_embeddings / factor",
    )
    beta_fast: PositiveFloat = Field(
        32.0,
        description="yarn: a frequency pair with more turns than this within the original length is"
        " kept",
    )
    beta_slow: PositiveFloat = Field(
        1.0,
        description="yarn: a frequency pair with fewer turns than this within the original length "
        "is divided by `factor`",
    )
    truncate: bool = Field(
        True,
        description="yarn: round the bounds between kept, mixed and divided pairs outwards to whole"
        " pairs",
    )
    attention_factor: PositiveFloat | None = Field(
        None,
        description="yarn: what query and key are each multiplied by; null: 0.1 ln(factor) + 1",
    )
    low_freq_factor: PositiveFloat = Field(
        1.0,
        description="llama3: a frequency pair with fewer turns than this within the original length"
        " is divided by `factor`",
    )
    high_freq_factor: PositiveFloat = Field(
        4.0,
        description="llama3: a frequency pair with more turns than this within the original length "
        "is kept",
    )

    OF_TYPE: ClassVar[dict[str, tuple[str, ...]]] = {
        "linear": (),
        "ntk": (),
        "yarn": (
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "truncate",
            "attention_factor",
        ),
        "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    }

    @model_validator(mode="after")
    def _check_type(self) -> "RopeScaling":
        allowed = {"type", "factor", *self.OF_TYPE[self.type]}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in allowed and value != field.default:
                users = [kind for kind, names in self.OF_TYPE.items() if name in names]
                raise ValueError(f"{name}={value} is for type {' or '.join(users)} alone")
        if self.type == "yarn" and self.beta_slow >= self.beta_fast:
            raise ValueError(
                f"beta_slow={self.beta_slow:g} must be below beta_fast={self.beta_fast:g}"
            )
        if self.type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor:g} must be below "
                f"high_freq_factor={self.high_freq_factor:g}"
            )
        return self
