"""The model as a pure tree of arrays: structure, initial values, logical axes.

Training, checkpoints and conversion work on nested dicts of arrays such as
`{"layers": {0: {"attention": {"q_proj": ...}}}}`; the modules of `llama.py` only interpret them.
"""

import functools
import zlib
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.sharding import Sharding

from dongwu_jax.config import ModelConfig
from dongwu_jax.models.llama import Block, Llama
from dongwu_jax.parallel.sharding import LogicalAxes, LogicalSharding

Parameters = dict[Any, Any]


def abstract_parameters(config: ModelConfig) -> Parameters:
    """Shapes and dtypes (float32) of every parameter, without allocating any."""
    return nnx.to_pure_dict(_abstract_model(config)[1])


def initial_parameters(
    config: ModelConfig,
    seed: int,
    shardings: Parameters | None = None,
    names: Container[str] | None = None,
) -> Parameters:
    """Fresh float32 weights: normal with `initializer_range`, norms one, biases zero.

    A parameter's values depend on the seed and its name alone, on any mesh.

    Args:
        shardings: where each parameter shall lie, made there; None: on the default device.
        names: of those that are wanted; None: all.
    """
    places = named_parameters(shardings) if shardings is not None else {}
    made = {
        name: initial_value(
            seed,
            name,
            variable.get_metadata("initializer"),
            variable.get_value().shape,
            places.get(name),
        )
        for name, variable in _declarations(config).items()
        if names is None or name in names
    }
    return parameter_tree(made)


def initial_value(
    seed: int, name: str, initializer: Initializer, shape: tuple[int, ...], place: Sharding | None
) -> jax.Array:
    """A fresh float32 parameter, made where it shall lie; None: on the default device."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return _maker(initializer, shape, place)(key)  # type: ignore[arg-type]  # it is hashable


@functools.lru_cache(maxsize=256)
def _maker(
    initializer: Initializer, shape: tuple[int, ...], place: Sharding | None
) -> Callable[[jax.Array], jax.Array]:
    """What makes a parameter from a key; all of the same kind share one compiled program."""
    return jax.jit(lambda key: initializer(key, shape, jnp.float32), out_shardings=place)


def logical_axes(config: ModelConfig) -> dict[str, LogicalAxes]:
    """Each parameter's logical axes by dotted name, e.g. `("embed", "heads", "head_dim")`."""
    return {name: variable.get_metadata("axes") for name, variable in _declarations(config).items()}


def _declarations(config: ModelConfig) -> dict[str, nnx.Variable]:
    """Each parameter as `llama.py` declares it, by dotted name."""
    variables = nnx.to_flat_state(_abstract_model(config)[1])
    return {".".join(map(str, path)): variable for path, variable in variables}


def parameter_shardings(config: ModelConfig, sharding: LogicalSharding) -> Parameters:
    """The parameter tree with each parameter's NamedSharding.

    Raises:
        UserError: a rule does not divide a dimension, or uses one mesh axis twice.
    """
    return tree_shardings(logical_axes(config), abstract_parameters(config), sharding)


def tree_shardings(
    axes: Mapping[str, LogicalAxes], shapes: Parameters, sharding: LogicalSharding
) -> Parameters:
    """The NamedSharding of each array of a tree, from its logical axes by dotted name."""
    return parameter_tree(
        {
            name: sharding.named(axes[name], leaf.shape)
            for name, leaf in named_parameters(shapes).items()
        }
    )


def named_parameters(parameters: Parameters) -> dict[str, Any]:
    """The tree flattened to dotted names such as `layers.0.attention.q_proj`."""
    leaves, _ = jax.tree.flatten_with_path(parameters)
    return {".".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def parameter_tree(named: Mapping[str, Any]) -> Parameters:
    """The inverse of `named_parameters`."""
    tree: Parameters = {}
    for name, leaf in named.items():
        *path, last = (int(part) if part.isdigit() else part for part in name.split("."))
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = leaf
    return tree


def bind(config: ModelConfig, parameters: Parameters) -> Llama:
    """The modules over these arrays; cheap enough to call inside a traced function.

    What is not among the arrays (a pipeline stage has no layers of others) cannot be computed with.
    """
    graph, abstract = _abstract_model(config)
    state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the next line writes into it
    nnx.replace_by_pure_dict(state, parameters)
    return nnx.merge(graph, state)


def block_structure(config: ModelConfig) -> nnx.GraphDef:
    """The modules of one block without their weights."""
    return _abstract_block(config)[0]


def block_state(config: ModelConfig, weights: Parameters) -> nnx.State:
    """One block's weights, or several blocks' stacked, as its modules take them."""
    state = jax.tree.map(lambda leaf: leaf, _abstract_block(config)[1])
    nnx.replace_by_pure_dict(state, weights)
    return state


@functools.lru_cache(maxsize=8)
def _abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and abstract state of the modules; both are only read."""
    return nnx.split(Llama(config))


@functools.lru_cache(maxsize=8)
def _abstract_block(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(Block(config))


def cast_matrices(parameters: Parameters, dtype: str) -> Parameters:
    """Matrices in `dtype`; norms (1-D) stay float32."""
    return jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)) if x.ndim > 1 else x, parameters)


def parameter_count(parameters: Parameters) -> int:
    """Number of scalars in a tree of arrays or of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
