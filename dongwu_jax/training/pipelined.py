"""Loss and gradients of a batch through pipeline stages.

Embedding, pipeline, then norm, head and loss: the last three are divided among the stages by micro
batches, so that no stage computes the head alone while the others wait.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dongwu_jax.config import RunConfig
from dongwu_jax.models.llama import Attend, RotaryTables, block_function
from dongwu_jax.models.parameters import Parameters, bind, block_state, block_structure
from dongwu_jax.models.projection import projections
from dongwu_jax.models.rope import rotary_tables
from dongwu_jax.parallel import pipeline
from dongwu_jax.parallel.collectives import all_gather, reduce_scatter
from dongwu_jax.training.embedding_gradient import add_embedding_gradient
from dongwu_jax.training.losses import Batch, Losses, LossFunction

_STREAMS = ("micro_batches", "batch", "residual_length", "hidden")


@dataclass(frozen=True)
class Pipelined:
    """One pipeline stage's share of the work, in a program that is manual over `pipe`."""

    config: RunConfig
    stages: int
    loss_function: LossFunction
    attend: Attend

    def loss_and_gradients(
        self, weights: Parameters, batch: Batch, scale: jax.Array, frozen: Parameters
    ) -> tuple[Losses, Parameters]:
        """This stage's part of `scale` times the losses, and float32 gradients of its weights.

        Args:
            weights: `layers` stacked [virtual stages, layers of a piece, ...], the rest as usual.
            batch: [micro_batches, batch, length].
            frozen: weights of the loss function that nothing trains.
        """

        def one_round(total: Any, batch: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, self._round(weights, batch, scale, frozen)), None

        start = self._no_losses(), _zeros(weights)
        return jax.lax.scan(one_round, start, self._rounds(batch))[0]

    def loss(self, weights: Parameters, batch: Batch, frozen: Parameters) -> jax.Array:
        """This stage's part of the loss."""

        def one_round(total: jax.Array, batch: Batch) -> tuple[jax.Array, None]:
            outer = _without_layers(weights)
            schedule = self._schedule(batch)
            stage = self._stage(self._rotary(batch))
            inputs = self._embed(outer, batch["tokens"])
            outputs = pipeline.run_forward(stage, weights["layers"], inputs, schedule)
            hidden, own = self._own_share(outputs, batch)

            def tail(total: jax.Array, xs: tuple[jax.Array, Batch]) -> tuple[jax.Array, None]:
                return total + self._tail(outer, *xs, frozen)["loss"], None

            return jax.lax.scan(tail, total, (hidden, own))[0], None

        start = jnp.zeros((), jnp.float32)
        return jax.lax.scan(one_round, start, self._rounds(batch))[0]

    def _round(
        self, weights: Parameters, batch: Batch, scale: jax.Array, frozen: Parameters
    ) -> tuple[Losses, Parameters]:
        """Losses and gradients of the micro batches that are in the pipeline together."""
        outer, layers = _without_layers(weights), weights["layers"]
        schedule = self._schedule(batch)
        rotary = self._rotary(batch)
        inputs = self._embed(outer, batch["tokens"])
        outputs, kept = pipeline.run_forward_keeping(
            self._stage(rotary), layers, rotary, inputs, schedule
        )
        hidden, own = self._own_share(outputs, batch)
        losses, outer_gradients, gradients = self._tail_gradients(outer, hidden, own, scale, frozen)
        gradients = all_gather(gradients, ["pipe"], 0, _STREAMS)
        layer_gradients, gradients = pipeline.run_backward(layers, kept, gradients, schedule)
        outer_gradients = self._add_embedding(outer_gradients, outer, batch["tokens"], gradients)
        return losses, outer_gradients | {"layers": layer_gradients}

    def _rounds(self, batch: Batch) -> Batch:
        """[micro_batches, ...] -> [rounds, micro batches of a round, ...]."""
        count = self.config.training.pipeline_micro_batches or batch["tokens"].shape[0]
        return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), batch)

    def _schedule(self, batch: Batch) -> pipeline.Schedule:
        virtual_stages = self.config.training.virtual_stages
        return pipeline.Schedule(self.stages, virtual_stages, batch["tokens"].shape[0])

    def _rotary(self, batch: Batch) -> RotaryTables:
        return rotary_tables(batch["positions"][0], self.config.model)  # equal in all

    def _stage(self, rotary: RotaryTables) -> pipeline.Stage:
        model, remat = self.config.model, self.config.training.remat
        multiply = projections(self.config.precision, 1)[0]  # the same in all blocks
        run = block_function(
            block_structure(model), rotary, self.attend, remat, inside_scan=True, multiply=multiply
        )

        def stage(layers: list[Parameters], x: jax.Array) -> jax.Array:
            for weights in layers:
                x = run(x, block_state(model, weights))
            return x

        return stage

    def _embed(self, outer: Parameters, tokens: jax.Array) -> jax.Array:
        """int32 [micro batches, batch, length] -> [micro batches, batch, length, embed]."""
        # One by one: of many at once the compiler would rather copy the table to all devices.
        return jax.lax.map(bind(self.config.model, outer).embed, tokens)

    def _own_share(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
        """The micro batches whose loss this stage computes: the last stage's outputs divided."""
        hidden = reduce_scatter(outputs, ["pipe"], 0, _STREAMS)
        first = jax.lax.axis_index("pipe") * hidden.shape[0]
        own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, hidden.shape[0]), batch)
        return hidden, own

    def _tail(
        self, outer: Parameters, hidden: jax.Array, batch: Batch, frozen: Parameters
    ) -> Losses:
        model = bind(self.config.model, outer)
        return self.loss_function(model, model.normalise(hidden), batch, frozen)

    def _no_losses(self) -> Losses:
        return dict.fromkeys(self.loss_function.names, jnp.zeros((), jnp.float32))

    def _tail_gradients(
        self,
        outer: Parameters,
        hidden: jax.Array,
        batch: Batch,
        scale: jax.Array,
        frozen: Parameters,
    ) -> tuple[Losses, Parameters, jax.Array]:
        """Losses, float32 gradients of the outer weights, and those of the hidden states."""

        def scaled(outer: Parameters, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, Losses]:
            losses = self._tail(outer, hidden, batch, frozen)
            losses = {name: loss * scale for name, loss in losses.items()}
            return losses["loss"], losses

        gradient_of = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)

        def add(total: Any, xs: tuple[jax.Array, Batch]) -> tuple[Any, jax.Array]:
            (_, losses), (outer_gradients, gradient) = gradient_of(outer, *xs)
            return jax.tree.map(jnp.add, total, (losses, outer_gradients)), gradient

        start = self._no_losses(), _zeros(outer)
        (losses, total), gradients = jax.lax.scan(add, start, (hidden, batch))
        return losses, total, gradients

    def _add_embedding(
        self, total: Parameters, outer: Parameters, tokens: jax.Array, gradients: jax.Array
    ) -> Parameters:
        """Add what the embeddings' gradients mean for the weights, micro batch by micro batch."""

        def add(total: Parameters, xs: tuple[jax.Array, jax.Array]) -> tuple[Parameters, None]:
            return add_embedding_gradient(self.config.model, total, outer, *xs), None

        return jax.lax.scan(add, total, (tokens, gradients))[0]


def _without_layers(weights: Parameters) -> Parameters:
    return {name: weight for name, weight in weights.items() if name != "layers"}


def _zeros(weights: Parameters) -> Parameters:
    return jax.tree.map(lambda weight: jnp.zeros(weight.shape, jnp.float32), weights)
