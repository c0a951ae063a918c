"""Loss and gradients of a global batch on any mesh: one program on every device's part.

Its collectives over pipe, data, fsdp and context stand written in `parallel/`; those over tensor
follow from the constraints in the model.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from dongwu_jax.config import RunConfig
from dongwu_jax.models.llama import Attend
from dongwu_jax.models.lora import adapted_parameters
from dongwu_jax.models.parameters import (
    Parameters,
    bind,
    logical_axes,
    named_parameters,
    parameter_tree,
)
from dongwu_jax.models.projection import projections
from dongwu_jax.models.ring_attention import zigzag_order
from dongwu_jax.parallel.collectives import all_reduce
from dongwu_jax.parallel.mesh import MANUAL_AXES
from dongwu_jax.parallel.sharding import LogicalAxes, LogicalSharding, constrain, local_to
from dongwu_jax.parallel.weights import WeightExchange, weight_layout
from dongwu_jax.training.attention import attend_within
from dongwu_jax.training.embedding_gradient import add_embedding_gradient
from dongwu_jax.training.fp8_weights import quantized_weights
from dongwu_jax.training.losses import Batch, Losses, LossFunction
from dongwu_jax.training.pipelined import Pipelined
from dongwu_jax.training.trained_weights import Frozen, trained_axes

_AXES = ("micro_batches", "batch", "length")  # of a batch's arrays; one may have another


@dataclass(frozen=True)
class Objective:
    """The loss of a global batch and its gradients, on one mesh.

    Args:
        loss_function: what is summed.
        attend: causal attention of this device's part of the sequences.
    """

    config: RunConfig
    sharding: LogicalSharding
    loss_function: LossFunction
    attend: Attend

    def __post_init__(self) -> None:
        for axes in (logical_axes(self.config.model) | trained_axes(self.config)).values():
            weight_layout(self.sharding, axes)  # refuses impossible rules now, not while compiling

    def loss_and_gradients(
        self, weights: Parameters, batch: Batch, scale: jax.Array, frozen: Frozen
    ) -> tuple[Losses, Parameters]:
        """`scale` times the sums of all losses, and float32 gradients of the one named "loss".

        Args:
            weights: what is trained, in the dtype of computation, laid out as it is stored.
            batch: [micro_batches, batch, length].
            frozen: what nothing trains.
        """

        def local(weights: Parameters, batch: Batch, scale: jax.Array, frozen: Frozen) -> Any:
            exchange = self._exchange(trained_axes(self.config))
            fetched = parameter_tree(exchange.fetch(named_parameters(weights)))
            frozen = self._with_fetched_base(frozen)
            losses, gradients = self._local_gradients(fetched, batch, scale, frozen)
            gradients = exchange.give_back(named_parameters(gradients))
            return jax.tree.map(self._total, losses), parameter_tree(gradients)

        program = self._on_every_device(local, self._specs(trained_axes(self.config)))
        return program(weights, batch, scale, frozen)

    def loss(self, weights: Parameters, batch: Batch, frozen: Frozen) -> jax.Array:
        """The sum of all losses."""

        def local(weights: Parameters, batch: Batch, _: jax.Array, frozen: Frozen) -> jax.Array:
            exchange = self._exchange(trained_axes(self.config))
            fetched = parameter_tree(exchange.fetch(named_parameters(weights)))
            return self._total(self._local_loss(fetched, batch, self._with_fetched_base(frozen)))

        program = self._on_every_device(local, None)
        return program(weights, batch, jnp.ones((), jnp.float32), frozen)

    def _with_fetched_base(self, frozen: Frozen) -> Frozen:
        if not frozen.base:
            return frozen
        exchange = self._exchange(logical_axes(self.config.model))
        base = parameter_tree(exchange.fetch(named_parameters(frozen.base)))
        return replace(frozen, base=base)

    def _local_gradients(
        self, weights: Parameters, batch: Batch, scale: jax.Array, frozen: Frozen
    ) -> Any:
        if self.sharding.size("pipe") > 1:
            return self._pipelined().loss_and_gradients(weights, batch, scale, frozen.teacher)

        differentiated, put_in = self._differentiated(weights, frozen)

        def add(total: Any, micro_batch: Batch) -> tuple[Any, None]:
            """(losses, float32 gradients as products) so far, and a micro batch's added."""

            def scaled(differentiated: Parameters, embedded: jax.Array) -> Any:
                whole = put_in(differentiated)
                losses = self._micro_losses(whole, embedded, micro_batch, frozen)
                losses = {name: loss * scale for name, loss in losses.items()}
                return losses["loss"], losses

            model, tokens = self.config.model, micro_batch["tokens"]
            embedded = bind(model, put_in(differentiated)).embed(tokens)
            gradient_of = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)
            (_, losses), (gradients, of_embedded) = gradient_of(differentiated, embedded)
            products = jax.tree.map(_add, total[1], _as_products(gradients))
            if "embed_tokens" in products:
                products = add_embedding_gradient(model, products, weights, tokens, of_embedded)
            return (jax.tree.map(jnp.add, total[0], losses), products), None

        dtype = self.config.precision.grad_accumulation_dtype
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), _as_products(weights))
        # A frequent token's row is added to thousands of times.
        if "embed_tokens" in zeros:
            zeros["embed_tokens"] = zeros["embed_tokens"].astype(jnp.float32)
        start = dict.fromkeys(self.loss_function.names, jnp.zeros((), jnp.float32)), zeros
        if batch["tokens"].shape[0] == 1:  # no loop, so that its total is no array of its own
            (losses, products), _ = add(start, jax.tree.map(lambda x: x[0], batch))
        else:
            (losses, products), _ = jax.lax.scan(add, start, batch)
        return losses, jax.tree.map(_like_weight, products, weights)

    def _differentiated(
        self, weights: Parameters, frozen: Frozen
    ) -> tuple[Parameters, Callable[[Parameters], Parameters]]:
        """What a step differentiates, and how it becomes what the model computes with."""
        if not self.config.lora.rank:
            return quantized_weights(self.config, weights)
        scale = self.config.lora.scale
        return weights, lambda adapters: adapted_parameters(frozen.base, adapters, scale)

    def _local_loss(self, weights: Parameters, batch: Batch, frozen: Frozen) -> jax.Array:
        if self.sharding.size("pipe") > 1:
            return self._pipelined().loss(weights, batch, frozen.teacher)

        if self.config.lora.rank:
            weights = adapted_parameters(frozen.base, weights, self.config.lora.scale)

        def add(total: jax.Array, micro_batch: Batch) -> tuple[jax.Array, None]:
            embedded = bind(self.config.model, weights).embed(micro_batch["tokens"])
            losses = self._micro_losses(weights, embedded, micro_batch, frozen)
            return total + losses["loss"], None

        return jax.lax.scan(add, jnp.zeros((), jnp.float32), batch)[0]

    def _micro_losses(
        self, weights: Parameters, embedded: jax.Array, micro_batch: Batch, frozen: Frozen
    ) -> Losses:
        model, training = bind(self.config.model, weights), self.config.training
        hidden = model.hidden_states(
            embedded,
            micro_batch["positions"],
            attend_within(self.attend, micro_batch),
            training.remat,
            training.scan_layers,
            projections(
                self.config.precision, self.config.model.num_layers, bool(self.config.lora.rank)
            ),
        )
        return self.loss_function(model, hidden, micro_batch, frozen.teacher)

    def _pipelined(self) -> Pipelined:
        return Pipelined(self.config, self.sharding.size("pipe"), self.loss_function, self.attend)

    def _exchange(self, axes: Mapping[str, LogicalAxes]) -> WeightExchange:
        model, training = self.config.model, self.config.training
        return WeightExchange(self.sharding, axes, model.num_layers, training.virtual_stages)

    def _on_every_device(self, local: Callable, gradient_specs: Any) -> Callable:
        """`local` with each device's part of all that it takes; losses, and gradients, come out."""
        sharding = self.sharding
        order = jnp.asarray(self._sequence_order())

        def program(order: jax.Array, weights: Parameters, batch: Batch, *others: Any) -> Any:
            with local_to(sharding):
                return local(weights, _own_positions(batch, order[0]), *others)

        if sharding.mesh.devices.size == 1:
            return lambda weights, batch, *others: local(
                weights, _own_positions(batch, order[0]), *others
            )
        rows = PartitionSpec(None, *sharding.manual_spec(("batch",)))
        loss_spec = PartitionSpec()
        mapped = jax.shard_map(
            program,
            mesh=sharding.mesh,
            in_specs=(
                PartitionSpec("context"),
                self._specs(trained_axes(self.config)),
                rows,
                PartitionSpec(),
                self._frozen_specs(),
            ),
            out_specs=loss_spec if gradient_specs is None else (loss_spec, gradient_specs),
            axis_names=set(MANUAL_AXES),
            check_vma=False,
        )
        return functools.partial(mapped, order)

    def _sequence_order(self) -> np.ndarray:
        """Positions that each context shard holds, int32 [shards, length / shards]."""
        length, shards = self.config.data.sequence_length, self.sharding.size("context")
        if "context" in self.sharding.mesh_axes("attention_length"):  # ring attention
            return zigzag_order(length, shards).astype(np.int32)
        return np.arange(length, dtype=np.int32).reshape(shards, -1)

    def _specs(self, axes: Mapping[str, LogicalAxes]) -> Parameters:
        return parameter_tree({name: self.sharding.manual_spec(axes[name]) for name in axes})

    def _frozen_specs(self) -> Frozen:
        base = self._specs(logical_axes(self.config.model)) if self.config.lora.rank else {}
        return Frozen(base, self.loss_function.frozen_specs)

    def _total(self, loss: jax.Array) -> jax.Array:
        """The sum of every device's loss."""
        axes = [axis for axis in MANUAL_AXES if self.sharding.size(axis) > 1]
        return all_reduce(loss, axes, ()) if axes else loss


def _own_positions(batch: Batch, order: jax.Array) -> Batch:
    """The positions of each sequence that lie on this device, and which they are."""
    own = {
        name: constrain(jnp.take(x, order, axis=2), *_AXES, *["each_entry"] * (x.ndim - 3))
        for name, x in batch.items()
    }
    return {"positions": jnp.broadcast_to(order, own["tokens"].shape)} | own


def _add(total: jax.Array, gradient: jax.Array) -> jax.Array:
    return total + gradient.astype(total.dtype)


def _like_weight(product: jax.Array, weight: jax.Array) -> jax.Array:
    return product.reshape(weight.shape).astype(jnp.float32)


def _as_products(weights: Parameters) -> Parameters:
    """Heads joined with head_dim, as in the matrix products that give the gradients.

    A sum in the very shape of a product becomes part of it; in another it takes a pass over memory.
    """

    def merged(name: str, weight: jax.Array) -> jax.Array:
        if weight.ndim < 3:
            return weight
        first = (-1, weight.shape[-1]) if name.endswith("o_proj") else (weight.shape[0], -1)
        return weight.reshape(first)

    return parameter_tree(
        {name: merged(name, weight) for name, weight in named_parameters(weights).items()}
    )
