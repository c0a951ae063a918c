"""Low-rank adapters: a few new weights are trained, the model's own stay as they are."""

from typing import Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from dongwu_jax.config.section import Section

LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)


class LoraConfig(Section):
    """Adapters (LoRA, Hu et al. 2021) on the weights of training.initial_weights; off by default.

    A matrix W that is a target becomes W + alpha / rank x down x up.
    """

    rank: PositiveInt | None = Field(
        None,
        description="inner width of the adapters, e.g. 16; null: no adapters, train all weights",
    )
    alpha: PositiveFloat = Field(
        32.0, description="strength: what the adapters add is multiplied by alpha / rank"
    )
    targets: tuple[LoraTarget, ...] = Field(
        LORA_TARGETS, description="matrices of every block that get adapters"
    )

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: tuple[LoraTarget, ...]) -> tuple[LoraTarget, ...]:
        if not targets or len(set(targets)) < len(targets):
            raise ValueError(
                f"{list(targets)}: name each matrix once, at least one of {', '.join(LORA_TARGETS)}"
            )
        return tuple(target for target in LORA_TARGETS if target in targets)

    @property
    def scale(self) -> float:
        """What down x up is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0
