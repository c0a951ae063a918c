"""What a training step minimises."""

from dataclasses import dataclass
from typing import Protocol

import jax

from dongwu_jax.models.cross_entropy import summed_next_token_losses
from dongwu_jax.models.llama import Llama
from dongwu_jax.models.parameters import Parameters

# tokens, labels: int32, loss_mask: float32; each [micro_batches, batch, length]; of packed samples
# also segments and positions, int32. A loss function sees one micro batch, and of each sequence the
# positions that lie on this device.
Batch = dict[str, jax.Array]
Losses = dict[str, jax.Array]


class LossFunction(Protocol):
    """A sum over tokens; the same on every device, for its part of a micro batch."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of what it gives: "loss", which is minimised, and what else is to be reported."""
        ...

    @property
    def frozen_specs(self) -> Parameters:
        """How the manual mesh axes split the weights that it needs and nothing trains."""
        ...

    def __call__(self, model: Llama, hidden: jax.Array, batch: Batch, frozen: Parameters) -> Losses:
        """Float32 scalars by name, summed over all micro batches and devices by the caller.

        Args:
            hidden: normalised hidden states, [batch, length, embed].
            frozen: this device's part of the weights that nothing trains.
        """
        ...


@dataclass(frozen=True)
class LanguageModelLoss:
    """Next-token cross entropy: the sum over a micro batch of loss times `loss_mask`.

    Args:
        chunk_tokens: positions whose logits exist at once; 0: all.
    """

    chunk_tokens: int

    @property
    def names(self) -> tuple[str, ...]:
        """The loss alone."""
        return ("loss",)

    @property
    def frozen_specs(self) -> Parameters:
        """It needs no other weights."""
        return {}

    def __call__(self, model: Llama, hidden: jax.Array, batch: Batch, frozen: Parameters) -> Losses:
        """See `LossFunction`."""
        labels, mask = batch["labels"], batch["loss_mask"]
        summed = summed_next_token_losses(model, hidden, labels, mask, self.chunk_tokens)
        return {"loss": summed}
