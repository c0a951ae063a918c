"""Shapes a model can be pruned to, and which of them transformers and vLLM can load."""

from dataclasses import dataclass
from math import prod

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.tensors import model_tensors

# As command lines name them, in ours and in Hugging Face's words.
NAMES = {
    "num_layers": "num_layers",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_heads",
    "num_attention_heads": "num_heads",
    "num_kv_heads": "num_kv_heads",
    "num_key_value_heads": "num_kv_heads",
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a pruned model; heads keep their width."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int

    def __str__(self) -> str:
        """As `parse_target` reads it."""
        return ",".join(f"{name}={size}" for name, size in vars(self).items())


def shape_of(config: ModelConfig) -> Shape:
    """The sizes of a model as it is."""
    return Shape(
        config.num_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_heads,
        config.kv_heads,
    )


def resized(whole: ModelConfig, shape: Shape) -> ModelConfig:
    """The architecture with other sizes; heads stay as wide as they were."""
    return whole.model_copy(update=vars(shape) | {"head_dim": whole.width_per_head})


def parameter_count(config: ModelConfig) -> int:
    """Parameters, padding of the vocabulary included; cheap enough for thousands of shapes."""

    def with_layers(layers: int) -> int:
        tensors = model_tensors(config.model_copy(update={"num_layers": layers}))
        return sum(prod(tensor.shape) for tensor in tensors)

    outside = with_layers(0)
    return outside + config.num_layers * (with_layers(1) - outside)


def parse_target(text: str, whole: ModelConfig) -> Shape:
    """Sizes such as "num_layers=32,hidden_size=4096"; what is not named stays.

    Where only query heads are named, each key/value head keeps as many of them as it had, and of a
    model without groups (MHA) as many key/value heads are left as query heads.

    Raises:
        UserError: a size is unknown, no whole number, or named twice.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in NAMES or not equals:
            raise UserError(f"--target {part}: write SIZE=NUMBER with one of {', '.join(NAMES)}")
        if NAMES[name] in sizes:
            raise UserError(f"--target: {NAMES[name]} is given twice")
        if not value.isdecimal() or int(value) == 0:
            raise UserError(f"--target {part}: {value!r} is not a positive whole number")
        sizes[NAMES[name]] = int(value)
    group = whole.num_heads // whole.kv_heads
    if "num_heads" in sizes and "num_kv_heads" not in sizes and sizes["num_heads"] % group == 0:
        sizes["num_kv_heads"] = sizes["num_heads"] // group
    return Shape(**(vars(shape_of(whole)) | sizes))


def check_shape(shape: Shape, whole: ModelConfig, tensor_parallel: int = 1) -> None:
    """Refuse what cannot be cut out of a model, or not be loaded afterwards.

    Args:
        tensor_parallel: ranks over which the pruned model shall be split.

    Raises:
        UserError: naming the rule.
    """
    for name, size in vars(shape).items():
        had = getattr(shape_of(whole), name)
        if size > had:
            raise UserError(f"--target {name}={size}: the model has {had}; pruning only cuts")
    heads, kv_heads = shape.num_heads, shape.num_kv_heads
    if heads % kv_heads:
        raise UserError(
            f"--target num_heads={heads}: is not a multiple of num_kv_heads={kv_heads}; "
            "every key/value head needs as many query heads"
        )
    had = whole.num_heads // whole.kv_heads
    if heads // kv_heads > had:
        raise UserError(
            f"--target num_heads={heads}, num_kv_heads={kv_heads}: {heads // kv_heads} query heads "
            f"for each key/value head, the model has {had}; keep more key/value heads"
        )
    if shape.hidden_size % heads:
        raise UserError(
            f"--target hidden_size={shape.hidden_size}: is not a multiple of num_heads={heads}; "
            "transformers refuses to load such a model, even with head_dim"
        )
    for name in ("num_heads", "intermediate_size"):
        if getattr(shape, name) % tensor_parallel:
            raise UserError(
                f"--target {name}={getattr(shape, name)}: is not a multiple of the "
                f"{tensor_parallel} tensor-parallel ranks"
            )
    if kv_heads % tensor_parallel and tensor_parallel % kv_heads:
        raise UserError(
            f"--target num_kv_heads={kv_heads}: neither divides nor is divided by the "
            f"{tensor_parallel} tensor-parallel ranks"
        )
