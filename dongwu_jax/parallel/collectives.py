"""Collectives over the manual mesh axes, on arrays that `tensor` may split further.

Each runs inside a shard_map of its own over `tensor`, so that every axis is manual: in a program
that is manual over some axes only, the compiler would first gather these operands over the others.
None is differentiated through; those that a loss goes through carry their own VJP.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dongwu_jax.parallel.sharding import LogicalAxes, current_sharding


def per_device(
    function: Callable[..., Any], in_axes: Sequence[LogicalAxes], out_axes: Any
) -> Callable[..., Any]:
    """`function` on each device's own part of its arguments.

    Args:
        in_axes: logical axes of each argument.
        out_axes: logical axes of the result, or a list of them for several.
    """
    sharding = current_sharding()
    if sharding is None:
        return function
    several = isinstance(out_axes, list)
    out_specs = (
        tuple(map(sharding.tensor_spec, out_axes)) if several else sharding.tensor_spec(out_axes)
    )
    mapped = jax.shard_map(
        function,
        in_specs=tuple(map(sharding.tensor_spec, in_axes)),
        out_specs=out_specs,
        axis_names={"tensor"},
        check_vma=False,
    )

    def checked(*arrays: jax.Array) -> Any:
        for axes, array in zip(in_axes, arrays, strict=True):
            sharding.check_divides(axes, array.shape)
        return mapped(*arrays)

    return checked


def all_gather(x: jax.Array, mesh_axes: Sequence[str], dim: int, axes: LogicalAxes) -> jax.Array:
    """Join the parts along dimension `dim`, the first mesh axis outermost."""
    gather = functools.partial(jax.lax.all_gather, axis_name=tuple(mesh_axes), axis=dim, tiled=True)
    return per_device(gather, [axes], axes)(x)


def reduce_scatter(
    x: jax.Array, mesh_axes: Sequence[str], dim: int, axes: LogicalAxes
) -> jax.Array:
    """Sum, and keep this device's part along dimension `dim`: the transpose of `all_gather`."""
    scatter = functools.partial(
        jax.lax.psum_scatter, axis_name=tuple(mesh_axes), scatter_dimension=dim, tiled=True
    )
    return per_device(scatter, [axes], axes)(x)


def all_reduce(x: jax.Array, mesh_axes: Sequence[str], axes: LogicalAxes) -> jax.Array:
    """Sum over mesh axes."""
    return per_device(lambda x: jax.lax.psum(x, tuple(mesh_axes)), [axes], axes)(x)


def all_max(x: jax.Array, mesh_axes: Sequence[str]) -> jax.Array:
    """The largest of a scalar over mesh axes."""
    return per_device(lambda x: jax.lax.pmax(x, tuple(mesh_axes)), [()], ())(x)


def send_around(x: jax.Array, mesh_axis: str, shift: int, axes: LogicalAxes) -> jax.Array:
    """Pass an array to the device `shift` further along a ring."""
    size = jax.lax.axis_size(mesh_axis)
    pairs = [(source, (source + shift) % size) for source in range(size)]
    return per_device(lambda x: jax.lax.ppermute(x, mesh_axis, pairs), [axes], axes)(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def all_to_all(
    x: jax.Array, mesh_axes: tuple[str, ...], split_dim: int, concat_dim: int, axes: LogicalAxes
) -> jax.Array:
    """Split dimension `split_dim` among the devices of some axes, the first outermost, and join
    what they send along `concat_dim`; differentiable."""
    exchange = functools.partial(
        jax.lax.all_to_all,
        axis_name=mesh_axes,
        split_axis=split_dim,
        concat_axis=concat_dim,
        tiled=True,
    )
    return per_device(exchange, [axes], axes)(x)


def _exchange_forward(
    x: jax.Array, mesh_axes: tuple[str, ...], split_dim: int, concat_dim: int, axes: LogicalAxes
) -> tuple[jax.Array, None]:
    return all_to_all(x, mesh_axes, split_dim, concat_dim, axes), None


def _exchange_backward(
    mesh_axes: tuple[str, ...],
    split_dim: int,
    concat_dim: int,
    axes: LogicalAxes,
    _: None,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    return (all_to_all(gradient, mesh_axes, concat_dim, split_dim, axes),)


all_to_all.defvjp(_exchange_forward, _exchange_backward)
