"""The collectives that a training step needs, in closed form: what a compiled program is held to.

Nothing is traced: counts follow from the settings and the shapes of the weights. Those over pipe,
data, fsdp and context stand written in `parallel/`, so kind, dtype, calls and bytes are exact.

Those over tensor are the compiler's. What stands here is what tensor and sequence parallelism need
(Korthikanti et al. 2022, "Reducing activation recomputation in large transformer models") where
heads, feed-forward and vocabulary are all split: as much as Megatron, less one all-gather for each
half of a block, since the joined input is kept for the weights' gradients and not joined again.

Not counted: what `negligible_bytes` bounds.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dongwu_jax.config import ModelConfig, RunConfig
from dongwu_jax.models.parameters import abstract_parameters, logical_axes, named_parameters
from dongwu_jax.parallel.mesh import MESH_AXES
from dongwu_jax.parallel.sharding import LogicalAxes, Rules, resolve_rules
from dongwu_jax.plan.hlo import Collective, CollectiveTotal, summarize_collectives

_ITEM_BYTES = {"bfloat16": 2, "float32": 4}
_HLO_NAMES = {"bfloat16": "bf16", "float32": "f32"}
_PER_USE = ("fsdp", "context")
_PER_STEP = ("data", "pipe")


@dataclass(frozen=True)
class ExpectedCollective:
    """All collectives of one kind, mesh axes and dtype in one step."""

    kind: str
    axes: tuple[str, ...]
    dtype: str  # as HLO writes it
    calls: int | None  # as the program writes them; None: all-reduces, which any compiler may merge
    operand_bytes: int  # what one device puts in, a step


def expected_collectives(config: RunConfig, device_count: int) -> list[ExpectedCollective]:
    """What a step of this run exchanges, sorted.

    A compiler for GPUs may merge neighbouring calls; the bytes remain.

    Raises:
        UserError: a sharding rule is impossible.
        ValueError: the run does not fit on as many devices.
    """
    step = _Step(config, device_count)
    groups: dict[tuple[str, tuple[str, ...], str], list[_Term]] = {}
    for term in (*step.weights(), *step.tensor(), *step.context(), *step.pipe()):
        axes = tuple(axis for axis in MESH_AXES if axis in term.axes and step.shape[axis] > 1)
        if axes and term.calls:
            key = term.kind, axes, _HLO_NAMES[term.dtype]
            groups.setdefault(key, []).append(term)
    return [
        ExpectedCollective(
            *key,
            calls=None if key[0] == "all-reduce" else sum(term.calls for term in terms),
            operand_bytes=sum(
                term.calls * term.elements * _ITEM_BYTES[term.dtype] for term in terms
            ),
        )
        for key, terms in sorted(groups.items())
    ]


def expected_totals(config: RunConfig, device_count: int) -> list[CollectiveTotal]:
    """The same as what a program's `summarize_collectives` would say, most bytes sent first.

    All-reduces, which any compiler merges, stand without a number of calls.

    Raises:
        As `expected_collectives`.
    """
    shape = config.mesh_shape(device_count)
    totals = []
    for expected in expected_collectives(config, device_count):
        size = math.prod(shape[axis] for axis in expected.axes)
        moved = Collective(
            expected.kind, expected.dtype, expected.axes, size, expected.operand_bytes, 1, True, ""
        )
        (total,) = summarize_collectives([moved])
        totals.append(replace(total, calls=expected.calls or 0))
    return sorted(totals, key=lambda total: -total.wire_bytes)


def negligible_bytes(config: RunConfig, device_count: int, axes: tuple[str, ...]) -> int:
    """No call of what `expected_collectives` leaves out puts in more, over these axes.

    Sums of scalars: the loss, the norm of every gradient. Of a micro batch, over tensor four values
    a token (statistics of the loss, tokens and labels), over what splits the embedding its tokens.
    """
    shape = config.mesh_shape(device_count)
    scalars = len(named_parameters(abstract_parameters(config.model))) + 3
    tokens = config.training.micro_batch_size * config.data.sequence_length // shape["context"]
    values = 4 if "tensor" in axes else 1 if set(axes) <= set(_PER_USE) else 0
    return 4 * max(scalars, values * tokens)


@dataclass(frozen=True)
class _Term:
    kind: str
    axes: tuple[str, ...]
    dtype: str  # as in the configuration
    calls: int
    elements: int  # of one device's operand, a call


@dataclass(frozen=True)
class _Weight:
    """One weight, or the same one of all blocks of a stage."""

    dtype: str
    elements: int  # of one weight, split over tensor alone
    count: int  # how many of it a device uses
    per_use: tuple[str, ...]
    per_step: tuple[str, ...]
    in_block: bool
    joins: int  # all-gathers over `per_use` in a step, of all of them together
    scatters: int  # reduce-scatters of their gradients, likewise


@functools.lru_cache(maxsize=4)
def _distinct_weights(model: ModelConfig) -> list[tuple[str, tuple[int, ...], LogicalAxes]]:
    """Name, shape and logical axes of each weight, of those in blocks the first block's."""
    axes = logical_axes(model)
    return [
        (name, tuple(value.shape), axes[name])
        for name, value in named_parameters(abstract_parameters(model)).items()
        if not name.startswith("layers.") or name.startswith("layers.0.")
    ]


class _Step:
    """The terms of one run's step."""

    def __init__(self, config: RunConfig, device_count: int):
        self.config = config
        self.shape: Mapping[str, int] = config.mesh_shape(device_count)
        self.rules: Rules = resolve_rules(config.sharding.rules)
        self.compute = config.precision.compute_dtype
        self.reduce = config.precision.grad_reduce_dtype
        self.ring = config.context_attention(device_count) == "ring"
        training, stages = config.training, self.shape["pipe"]
        self.micro_batches = config.accumulation_steps(device_count)
        self.together = config.pipeline_micro_batches(device_count) if stages > 1 else 1
        self.rounds = self.micro_batches // self.together
        turns = training.virtual_stages
        self.ticks = turns * self.together + stages - 1 if stages > 1 else 1
        # Every stage applies one piece of the layers at every tick, idle ones too.
        self.layers_a_tick = config.model.num_layers // (stages * turns)
        self.block_runs = self.rounds * self.ticks * self.layers_a_tick
        self.head_runs = self.micro_batches // stages
        tokens = training.micro_batch_size * config.data.sequence_length // self.shape["context"]
        self.tokens = tokens  # of one micro batch on one device
        self.stream = tokens * config.model.hidden_size  # its residual stream, whole over tensor
        self.sequence_parallel = "tensor" in self.rules["residual_length"]

    def weights(self) -> Iterator[_Term]:
        """Joining weights, summing gradients: for every use, and once a step."""
        for weight in self._weights():
            used = weight.elements // self._size(weight.per_use)
            axes, whole = weight.per_use, weight.elements
            yield _Term("all-gather", axes, weight.dtype, weight.joins, used)
            yield _Term("reduce-scatter", axes, self.reduce, weight.scatters, whole)
            yield from self._fetch(weight, used)
            yield from self._give_back(weight, used)
        # Embedded tokens come from the devices that hold columns, and their gradients go there.
        split = self.shape["tensor"] if self.sequence_parallel else 1
        lookups = 2 * self.micro_batches
        yield _Term("all-to-all", self._columns(), self.compute, lookups, self.stream // split)

    def tensor(self) -> Iterator[_Term]:
        """Megatron's: the sequence is joined before a block's halves and scattered after them.

        What is joined forward is kept, or joined again where it is recomputed; the gradients of
        what was scattered are joined once for both matmuls that need them.
        """
        remat = self.config.training.remat
        joins = self.block_runs * (4 if remat == "none" else 6)
        sums = self.block_runs * (4 if remat in ("none", "minimal") else 5)
        # Embedding: sum of the partial lookups; joined gradient. Head: the other way round.
        joins += self.micro_batches + self.head_runs
        looked_up = self.rounds * self.together
        sums += looked_up + self.head_runs
        axes = ("tensor",)
        if not self.sequence_parallel:
            yield _Term("all-reduce", axes, self.compute, sums, self.stream)
            return
        size = self.shape["tensor"]
        yield _Term("all-gather", axes, self.compute, joins, self.stream // size)
        yield _Term("reduce-scatter", axes, self.compute, sums, self.stream)
        # Norms see a part of the sequence each. XLA for GPUs sums over micro batches first.
        norms = 2 * self.block_runs + self.head_runs
        yield _Term("all-reduce", axes, "float32", norms, self.config.model.hidden_size)

    def context(self) -> Iterator[_Term]:
        """Ulysses exchanges query, key, value and output; a ring passes keys and values on."""
        model, remat, size = self.config.model, self.config.training.remat, self.shape["context"]
        of_head = self.tokens * model.width_per_head
        query = of_head * model.num_heads // self.shape["tensor"]
        key = of_head * model.kv_heads // self.shape["tensor"]
        axes = ("context",)
        if not self.ring:
            passes = self.block_runs * (2 if remat == "none" else 3)
            yield _Term("all-to-all", axes, self.compute, 2 * passes, query)
            yield _Term("all-to-all", axes, self.compute, 2 * passes, key)
            return
        # Forward, its recomputation where the kernel's output is not kept, and backward; there the
        # gradients of keys and values follow them round.
        passes = self.block_runs * (size - 1) * (3 if remat == "full" else 2)
        yield _Term("collective-permute", axes, self.compute, passes, 2 * key)
        sums = self.block_runs * (size - 1)
        yield _Term("collective-permute", axes, "float32", sums, 2 * key)

    def pipe(self) -> Iterator[_Term]:
        """Activations and their gradients go to the next stage at every tick, and the last stage's
        outputs are divided among all for the head."""
        split = self.shape["tensor"] if self.sequence_parallel else 1
        stream, stages = self.stream // split, self.shape["pipe"]
        axes = ("pipe",)
        passes = 2 * self.rounds * self.ticks
        yield _Term("collective-permute", axes, self.compute, passes, stream)
        outputs = self.together * stream
        yield _Term("reduce-scatter", axes, self.compute, self.rounds, outputs)
        yield _Term("all-gather", axes, self.compute, self.rounds, outputs // stages)

    def _fetch(self, weight: _Weight, used: int) -> Iterator[_Term]:
        """How stored weights come to the stages that use them, and gradients back."""
        if not (weight.in_block and self.shape["pipe"] > 1):
            stored = used // self._size(weight.per_step)
            yield _Term("all-gather", weight.per_step, weight.dtype, weight.count, stored)
            return
        over_data = self.shape["data"] if "data" in weight.per_step else 1
        stack = weight.count * used // over_data  # of one stage
        if "pipe" in weight.per_step:
            yield _Term("all-to-all", ("pipe",), weight.dtype, 1, stack)
            yield _Term("all-to-all", ("pipe",), self.reduce, 1, stack)  # gradients, back
        else:  # every stage stores all layers
            yield _Term("all-gather", ("pipe",), self.reduce, 1, stack)
        if "data" in weight.per_step:
            yield _Term("all-gather", ("data",), weight.dtype, 1, stack)

    def _give_back(self, weight: _Weight, used: int) -> Iterator[_Term]:
        """The sum of gradients over devices that saw other tokens, but for `per_use`."""
        staged = weight.in_block and self.shape["pipe"] > 1
        pending = [axis for axis in ("data", *_PER_USE) if axis not in weight.per_use]
        if not staged:
            pending.insert(0, "pipe")
        scattered = tuple(axis for axis in weight.per_step if axis in pending)
        calls, elements = (1, weight.count * used) if staged else (weight.count, used)
        if scattered:
            yield _Term("reduce-scatter", scattered, self.reduce, calls, elements)
            elements //= self._size(scattered)
        whole = tuple(axis for axis in pending if axis not in scattered)
        yield _Term("all-reduce", whole, self.reduce, calls, elements)

    def _weights(self) -> Iterator[_Weight]:
        model = self.config.model
        for name, shape, axes in _distinct_weights(model):
            in_block = name.startswith("layers.")
            joins, scatters = self._uses(name)
            yield _Weight(
                dtype=self.compute if len(shape) > 1 else "float32",
                elements=math.prod(shape) // self._size(self._split(axes, ("tensor",))),
                count=model.num_layers // self.shape["pipe"] if in_block else 1,
                per_use=self._split(axes, _PER_USE),
                per_step=self._split(axes, _PER_STEP),
                in_block=in_block,
                joins=joins,
                scatters=scatters,
            )

    def _uses(self, name: str) -> tuple[int, int]:
        """How often a step joins such weights, and scatters their gradients."""
        if name.startswith("layers."):
            return 2 * self.block_runs, self.block_runs  # the backward pass joins them again
        head, lookups = self.head_runs, 0 if self._columns() else self.micro_batches
        if name == "embed_tokens" and not self.config.model.tie_word_embeddings:
            return lookups, lookups
        if name == "embed_tokens":
            # Without a pipeline the lookup and the head share one joined matrix.
            shared = lookups + head if self.shape["pipe"] > 1 else head
            return shared, lookups + head
        return head, head

    def _columns(self) -> tuple[str, ...]:
        """The axes over which devices share the columns of the embedding."""
        return self._split(("embed",), _PER_USE)

    def _split(self, axes: LogicalAxes, among: tuple[str, ...]) -> tuple[str, ...]:
        """Which of some mesh axes split a weight with these logical axes."""
        here = {mesh_axis for name in axes for mesh_axis in self.rules[name]}
        return tuple(axis for axis in among if axis in here and self.shape[axis] > 1)

    def _size(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.shape[axis] for axis in axes)
