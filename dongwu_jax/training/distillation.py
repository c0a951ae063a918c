"""Losses that compare a model's predictions with a bigger model's."""

from contextlib import nullcontext
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.config.distillation import DistillationConfig
from dongwu_jax.data.teacher_cache import IDS, LOG_PROBABILITIES
from dongwu_jax.models.chunked_loss import sum_over_chunks
from dongwu_jax.models.cross_entropy import token_cross_entropy, token_logits
from dongwu_jax.models.divergence import token_divergence, top_divergence
from dongwu_jax.models.llama import Llama
from dongwu_jax.models.parameters import Parameters, bind, logical_axes, parameter_tree
from dongwu_jax.parallel.context import Attend
from dongwu_jax.parallel.layout import teacher_sharding
from dongwu_jax.parallel.sharding import LogicalSharding, current_sharding, local_to
from dongwu_jax.training.attention import attend_within, attention_of
from dongwu_jax.training.losses import Batch, Losses, LossFunction
from dongwu_jax.training.state import LoadFrozen


@dataclass(frozen=True)
class Teacher:
    """A model that runs beside the one that is trained, on the same devices and batches."""

    config: ModelConfig
    sharding: LogicalSharding
    attend: Attend

    @property
    def specs(self) -> Parameters:
        """How the manual mesh axes split its weights."""
        axes = logical_axes(self.config)
        return parameter_tree({name: self.sharding.manual_spec(axes[name]) for name in axes})

    def outputs(self, weights: Parameters, batch: Batch) -> tuple[Llama, jax.Array, jax.Array]:
        """The bound model, its normalised hidden states [batch, length, embed], and its head."""
        with self._own_layout():
            model = bind(self.config, jax.lax.stop_gradient(weights))
            embedded = model.embed(batch["tokens"])
            attend = attend_within(self.attend, batch)
            hidden = model.hidden_states(embedded, batch["positions"], attend)
            return model, hidden, model.head()

    def logits(self, model: Llama, hidden: jax.Array, head: jax.Array) -> jax.Array:
        """[batch, length, vocab] of some of its hidden states."""
        with self._own_layout():
            return token_logits(model, hidden, head)

    def _own_layout(self):  # type: ignore[no-untyped-def]
        return local_to(self.sharding) if current_sharding() else nullcontext()


@dataclass(frozen=True)
class DistillationLoss:
    """Divergence from a teacher that runs in the same step, beside the cross entropy.

    Args:
        chunk_tokens: positions whose logits, of both models, exist at once; 0: all.
    """

    settings: DistillationConfig
    chunk_tokens: int
    teacher: Teacher

    @property
    def names(self) -> tuple[str, ...]:
        """The loss, its parts without their weights, and the teacher's own cross entropy."""
        parts = ("loss", "language_model_loss", "divergence", "teacher_loss")
        return (*parts, "hidden_distance") if self.settings.hidden_weight else parts

    @property
    def frozen_specs(self) -> Parameters:
        """The teacher's weights."""
        return self.teacher.specs

    def __call__(self, model: Llama, hidden: jax.Array, batch: Batch, frozen: Parameters) -> Losses:
        """See `LossFunction`."""
        teacher, settings = self.teacher, self.settings
        taught, seen, teacher_head = teacher.outputs(frozen, batch)

        def of_chunk(
            hidden: jax.Array,
            head: jax.Array,
            seen: jax.Array,
            labels: jax.Array,
            mask: jax.Array,
            teacher_head: jax.Array,
        ) -> tuple[jax.Array, Losses]:
            logits = token_logits(model, hidden, head)
            expected = jax.lax.stop_gradient(teacher.logits(taught, seen, teacher_head))
            divergence = token_divergence(logits, expected, settings.temperature, settings.loss)
            losses = {
                "divergence": jnp.sum(divergence * mask),
                "teacher_loss": jnp.sum(token_cross_entropy(expected, labels) * mask),
            }
            scaled = settings.temperature**2 * losses["divergence"]
            return _mixed(scaled, logits, labels, mask, settings.weight, losses)

        targets = (seen, batch["labels"], batch["loss_mask"])
        loss, losses = sum_over_chunks(
            of_chunk, self.chunk_tokens, hidden, model.head(), targets, (teacher_head,)
        )
        if settings.hidden_weight:
            distance = jnp.sum(_distance(model, hidden, seen) * batch["loss_mask"])
            loss = loss + settings.hidden_weight * distance
            losses = losses | {"hidden_distance": distance}
        return losses | {"loss": loss}


@dataclass(frozen=True)
class CachedDistillationLoss:
    """Divergence from what a teacher held likeliest, read with the batch.

    Args:
        chunk_tokens: positions whose logits exist at once; 0: all.
    """

    settings: DistillationConfig
    chunk_tokens: int

    @property
    def names(self) -> tuple[str, ...]:
        """The loss, and its parts without their weights."""
        return ("loss", "language_model_loss", "divergence")

    @property
    def frozen_specs(self) -> Parameters:
        """It needs no other weights."""
        return {}

    def __call__(self, model: Llama, hidden: jax.Array, batch: Batch, frozen: Parameters) -> Losses:
        """See `LossFunction`."""

        def of_chunk(
            hidden: jax.Array,
            head: jax.Array,
            ids: jax.Array,
            log_probabilities: jax.Array,
            labels: jax.Array,
            mask: jax.Array,
        ) -> tuple[jax.Array, Losses]:
            logits = token_logits(model, hidden, head)
            divergence = jnp.sum(top_divergence(logits, ids, log_probabilities) * mask)
            losses = {"divergence": divergence}
            return _mixed(divergence, logits, labels, mask, self.settings.weight, losses)

        names = (IDS, LOG_PROBABILITIES, "labels", "loss_mask")
        loss, losses = sum_over_chunks(
            of_chunk, self.chunk_tokens, hidden, model.head(), [batch[name] for name in names]
        )
        return losses | {"loss": loss}


def _mixed(
    divergence: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    weight: float,
    losses: Losses,
) -> tuple[jax.Array, Losses]:
    """The weighted sum of divergence and cross entropy; the latter is reported in any case."""
    cross_entropy = jnp.sum(token_cross_entropy(logits, labels) * mask)
    loss = weight * divergence
    if weight < 1:
        loss = loss + (1 - weight) * cross_entropy
    return loss, losses | {"language_model_loss": cross_entropy}


def _distance(model: Llama, hidden: jax.Array, seen: jax.Array) -> jax.Array:
    """1 - cos between a teacher's hidden states and the projected own, float32 [batch, length]."""
    projection = model.projection_to_teacher()
    own = jnp.einsum("btd,de->bte", hidden, projection).astype(jnp.float32)
    seen = jax.lax.stop_gradient(seen).astype(jnp.float32)
    lengths = jnp.linalg.norm(own, axis=-1) * jnp.linalg.norm(seen, axis=-1)
    return 1 - jnp.sum(own * seen, axis=-1) / jnp.maximum(lengths, 1e-6)


@dataclass(frozen=True)
class TeacherModel:
    """A teacher before it is on any device."""

    config: ModelConfig
    load: LoadFrozen


def make_distillation_loss(
    config: RunConfig, sharding: LogicalSharding, platform: str, teacher: ModelConfig | None
) -> LossFunction:
    """What the `distillation` section of a run asks for.

    Args:
        platform: "cpu" or "gpu", for the choice of the attention kernel.
        teacher: the architecture of `distillation.teacher`, if set.
    """
    settings, chunk = config.distillation, config.training.loss_chunk_tokens
    if teacher is None:
        return CachedDistillationLoss(settings, chunk)
    own = teacher_sharding(config, sharding, teacher)
    attend = attention_of(config, teacher, own, platform)
    return DistillationLoss(settings, chunk, Teacher(teacher, own, attend))
