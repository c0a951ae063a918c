"""Shapes that a model can be pruned to so that it has a given number of parameters."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from math import lcm

from dongwu_jax.compress.shapes import Shape, check_shape, parameter_count, resized, shape_of
from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError

CLOSEST = 0.97  # of the budget that a shape must use

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_LARGEST_STEP = {"hidden_size": 256, "intermediate_size": 512}
_STEPS = 16  # a size has at least so many; its step is a power of two
_ROUNDER = 4  # steps between two hidden sizes, at most, for the sake of rounder ones
_MOST = 90  # percent that are ever cut


@dataclass(frozen=True)
class Limits:
    """How much of a model may be cut at once, in percent (ModelOpt's, unless nothing fits).

    Attributes:
        width: of heads, hidden and feed-forward channels.
        depth: of layers.
    """

    width: int = 40
    depth: int = 20

    def wider(self) -> "Limits | None":
        """The next ones; None: there are none."""
        if self.width == self.depth == _MOST:
            return None
        return Limits(min(self.width + 10, _MOST), min(self.depth + 10, _MOST))


def parse_budget(text: str) -> int:
    """The parameters that a text such as 81M, 6.2B or 81000000 means.

    Raises:
        UserError: it is no such text.
    """
    match = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?)\s*([KMB]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"--search {text}: write a number of parameters, such as 81M or 6.2B")
    number = Decimal(match[1].replace(",", "").replace("_", ""))
    return int(number * _UNITS[match[2].upper()])


def candidate_shapes(
    whole: ModelConfig, budget: int, tensor_parallel: int = 1, fsdp: int = 1
) -> tuple[list[Shape], Limits]:
    """All shapes that use at least `CLOSEST` of a budget, and the limits that they keep to.

    Of each number of layers, hidden size and heads there is one: with the widest feed-forward. A
    size is a multiple of a power of two, about a sixteenth of what the model has, or all of it; a
    hidden size is also a multiple of the heads.

    Args:
        budget: parameters.
        tensor_parallel: ranks over which the pruned model shall be split.
        fsdp: devices that share one copy of the weights while shapes are compared.

    Raises:
        UserError: the budget is not below the model's size, or no shape comes close to it.
    """
    has = parameter_count(whole)
    if not 0 < budget < has:
        raise UserError(f"--search {budget:,}: the model has {has:,} parameters; give less")
    limits: Limits | None = Limits()
    below = 0  # parameters of the largest shape that fits
    while limits is not None:
        found = []
        for shape in _widest(whole, budget, limits, tensor_parallel, fsdp):
            parameters = parameter_count(resized(whole, shape))
            below = max(below, parameters)
            if parameters >= CLOSEST * budget:
                found.append(shape)
        if found:
            return found, limits
        limits = limits.wider()
    closest = f"the closest below it has {below:,}" if below else "none is as small"
    raise UserError(
        f"--search {budget:,}: no shape has {CLOSEST:.0%} to 100% of so many parameters; {closest}"
    )


def step(name: str, size: int) -> int:
    """Of a size of `Shape`: a power of two."""
    steps = max(1, size // _STEPS)
    return min(1 << (steps.bit_length() - 1), _LARGEST_STEP.get(name, size))


def _widest(
    whole: ModelConfig, budget: int, limits: Limits, tensor_parallel: int, fsdp: int
) -> Iterator[Shape]:
    """Shapes within the limits, each with the widest feed-forward that the budget allows."""
    had = shape_of(whole)
    group = had.num_heads // had.num_kv_heads
    fewest = {name: _fewest(size, limits.width) for name, size in vars(had).items()}
    fewest["num_layers"] = _fewest(had.num_layers, limits.depth)
    of_layers, of_kv_heads = (
        _multiples(step(name, size), fewest[name], size)
        for name, size in (("num_layers", had.num_layers), ("num_kv_heads", had.num_kv_heads))
    )
    for layers, kv_heads, each in itertools.product(of_layers, of_kv_heads, range(1, group + 1)):
        heads = kv_heads * each
        if heads < fewest["num_heads"]:
            continue
        spacing = lcm(_spacing(heads, step("hidden_size", had.hidden_size)), fsdp)
        for hidden in _multiples(spacing, fewest["hidden_size"], had.hidden_size):
            shape = Shape(layers, hidden, 0, heads, kv_heads)
            inner = _widest_inner(shape, whole, budget, tensor_parallel)
            if inner < fewest["intermediate_size"]:
                continue
            shape = replace(shape, intermediate_size=inner)
            if _possible(shape, whole, tensor_parallel):
                yield shape


def _fewest(size: int, percent: int) -> int:
    """What is left of a size when as much as allowed is cut, rounded up."""
    return -(-size * (100 - percent) // 100)


def _multiples(spacing: int, fewest: int, size: int) -> list[int]:
    """Ascending, and the whole size."""
    return [*range(-(-fewest // spacing) * spacing, size, spacing), size]


def _spacing(heads: int, step: int) -> int:
    """Of hidden sizes with so many heads: as round as they can be without being rare."""
    power = step
    while power > 1 and lcm(heads, power) > _ROUNDER * step:
        power //= 2
    return lcm(heads, power)


def _widest_inner(shape: Shape, whole: ModelConfig, budget: int, tensor_parallel: int) -> int:
    """The widest feed-forward that fits, or 0; parameters grow evenly with it."""
    without, with_one = (
        parameter_count(resized(whole, replace(shape, intermediate_size=inner))) for inner in (0, 1)
    )
    fits = (budget - without) // (with_one - without)
    if fits >= whole.intermediate_size:
        return whole.intermediate_size
    spacing = lcm(step("intermediate_size", whole.intermediate_size), tensor_parallel)
    return max(0, fits // spacing * spacing)


def _possible(shape: Shape, whole: ModelConfig, tensor_parallel: int) -> bool:
    try:
        check_shape(shape, whole, tensor_parallel)
    except UserError:
        return False
    return True
