"""What a training step minimises."""

from collections.abc import Callable

import jax

from dongwu_jax.models.llama import Llama
from dongwu_jax.models.losses import summed_next_token_losses

# tokens, labels: int32, loss_mask: float32; each [micro_batches, batch, length]. A loss function
# sees one micro batch, and of each sequence the positions that lie on this device.
Batch = dict[str, jax.Array]

# (model, normalised hidden states [batch, length, embed], micro batch) -> float32 scalar, summed
# over all micro batches and devices.
LossFunction = Callable[[Llama, jax.Array, Batch], jax.Array]


def language_model_loss(chunk_tokens: int) -> LossFunction:
    """Next-token cross entropy: the sum over a micro batch of loss times `loss_mask`.

    Args:
        chunk_tokens: positions whose logits exist at once; 0: all.
    """

    def loss(model: Llama, hidden: jax.Array, batch: Batch) -> jax.Array:
        labels, mask = batch["labels"], batch["loss_mask"]
        return summed_next_token_losses(model, hidden, labels, mask, chunk_tokens)

    return loss
