"""Learning from a bigger model's predictions instead of, or beside, the text itself."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from dongwu_jax.config.section import Section


class DistillationConfig(Section):
    """A teacher whose predictions are learned; off unless `teacher` or `cache` is set."""

    teacher: Path | None = Field(
        None,
        description="model that runs in the same step (any format that tools/convert.py reads); "
        "null: none",
    )
    cache: Path | None = Field(
        None,
        description="folder of a teacher's likeliest tokens, written by tools/cache_teacher.py for "
        "these data; instead of teacher",
    )
    loss: Literal["forward_kl", "reverse_kl"] = Field(
        "forward_kl",
        description="divergence between the distributions of the next token. forward_kl: cover all "
        "that the teacher holds possible; reverse_kl: avoid what it holds impossible",
    )
    temperature: Annotated[float, Field(ge=0.1, le=100)] = Field(
        1.0,
        description="what both models' logits are divided by, above 1 to learn more from unlikely "
        "tokens; the divergence is multiplied by its square, so that gradients keep "
        "their size",
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="share of the divergence in the loss; the rest is next-token cross entropy with"
        " the text",
    )
    hidden_weight: NonNegativeFloat = Field(
        0.0,
        description="this many times 1 - cos between the last hidden states, the student's after a "
        "learned projection to the teacher's width, is added to the loss; 0: nothing",
    )
    sharding_rules: dict[str, list[str] | str | None] = Field(
        default_factory=dict,
        description="the teacher's own sharding.rules, where its weights shall lie otherwise than "
        "the student's, e.g. {embed: null} for a whole copy on each device",
    )

    @model_validator(mode="after")
    def _check_cache(self) -> "DistillationConfig":
        if self.teacher is not None and self.cache is not None:
            raise ValueError(
                f"distillation.teacher={self.teacher} and distillation.cache={self.cache} are both "
                "set; keep the teacher to run it in the step, or the cache to read what it said"
            )
        if self.hidden_weight and self.teacher is None and self.cache is None:
            raise ValueError(
                f"distillation.hidden_weight={self.hidden_weight} needs distillation.teacher, "
                "whose hidden states are matched"
            )
        if self.cache is None:
            return self
        for name, only, why in (
            ("loss", "forward_kl", "knows the teacher's likeliest tokens alone"),
            ("temperature", 1.0, "was made at temperature 1"),
            ("hidden_weight", 0.0, "holds no hidden states"),
        ):
            if getattr(self, name) != only:
                raise ValueError(
                    f"distillation.{name}={getattr(self, name)}: a cache {why}; leave it at "
                    f"{only}, or set distillation.teacher instead of distillation.cache"
                )
        return self
