"""`params.json` of Meta's models <-> ModelConfig.

It gives the width of the feed-forward only through a rule, and no context length at all.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object
from dongwu_jax.interop.hf_config import Json

_SIZES = ("dim", "n_layers", "n_heads")
_NUMBERS = ("n_kv_heads", "head_dim", "vocab_size", "norm_eps", "rope_theta", "max_seq_len")
_IMPLIED = ("multiple_of", "ffn_dim_multiplier", "hidden_dim", "max_batch_size")  # by the tensors
_MUST_BE_OFF = {
    "use_scaled_rope": "the rope scaling of Llama 3.1",
    "sliding_window": "attention over a window",
    "moe": "a mixture of experts",
    "quantization_args": "quantized weights",
    "lora_args": "adapters",
}
_PLAIN_THETA = 10000.0
_RELEASED: tuple[Json, ...] = (  # rules for the feed-forward in Meta's models
    {"multiple_of": 256},
    {"multiple_of": 1024, "ffn_dim_multiplier": 1.3},
    {"multiple_of": 4096, "ffn_dim_multiplier": 1.3},
)


def read_params(path: Path) -> Json:
    """The settings of a `params.json`, of the right kinds and all understood; null ones left out.

    Raises:
        UserError: one is missing, or asks for something that a Llama of ours cannot do.
    """
    params = {name: value for name, value in read_json_object(path).items() if value is not None}
    for name, meaning in _MUST_BE_OFF.items():
        if params.pop(name, False):
            raise UserError(f"{path}: {name}: {meaning} is not supported")
    for name in _SIZES:
        if type(params.get(name)) is not int or params[name] < 1:
            raise UserError(
                f"{path}: {name} must be a positive whole number, not {params.get(name)!r}"
            )
    for name in _NUMBERS:
        if type(params.get(name, 0)) not in (int, float):
            raise UserError(f"{path}: {name} must be a number, not {params[name]!r}")
    unknown = sorted(params.keys() - {*_SIZES, *_NUMBERS, *_IMPLIED})
    if unknown:
        raise UserError(
            f"{path}: {unknown[0]}={params[unknown[0]]!r} is not understood; remove it if the "
            "model computes the same without it"
        )
    return params


def model_config(
    params: Json, path: Path, vocab_rows: int, intermediate_size: int, tied: bool
) -> ModelConfig:
    """The architecture, from the settings and what only the tensors tell.

    Args:
        params: as `read_params` gives them.
        path: of the `params.json`, for errors.

    Raises:
        UserError: the settings contradict each other or the tensors.
    """
    known = params.get("vocab_size", -1)
    vocab_size = vocab_rows if known == -1 else known
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "padded_vocab_size": vocab_rows if vocab_rows != vocab_size else None,
        "hidden_size": params["dim"],
        "intermediate_size": intermediate_size,
        "num_layers": params["n_layers"],
        "num_heads": params["n_heads"],
        "num_kv_heads": params.get("n_kv_heads"),
        "head_dim": params.get("head_dim"),
        "max_position_embeddings": context_length(params)[0],
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta", _PLAIN_THETA),
        "tie_word_embeddings": tied,
    }
    try:
        return ModelConfig.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the sizes"
        message = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {where}: {message}") from None


def context_length(params: Json) -> tuple[int, str | None]:
    """`max_seq_len` if given, else that of the models that Meta released with such settings.

    Returns:
        The length, and a sentence about what was assumed, if anything was.
    """
    if "max_seq_len" in params:
        return params["max_seq_len"], None
    theta = params.get("rope_theta", _PLAIN_THETA)
    length, family = 4096, "Llama 2"
    if theta == 1e6:
        length, family = 16384, "Code Llama"
    elif theta == 5e5:
        length, family = 8192, "Llama 3"
    elif params.get("norm_eps") == 1e-6:
        length, family = 2048, "Llama 1"
    return length, (
        f"params.json does not give the context length: {length} is assumed, as of {family}, "
        f"because rope_theta is {theta:g} and norm_eps {params.get('norm_eps', 1e-5):g}"
    )


def write_params(config: ModelConfig) -> Json:
    """The `params.json` from which Meta's code builds this architecture.

    What equals the default of the oldest code that can express it is left out, because that code
    refuses settings it does not know.

    Raises:
        UserError: Meta's code has no such architecture.
    """
    _check_expressible(config)
    params: Json = {
        "dim": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.rms_norm_eps,
    }
    if config.kv_heads != config.num_heads:
        params["n_kv_heads"] = config.kv_heads
    if config.rope_theta != _PLAIN_THETA:
        params["rope_theta"] = config.rope_theta
    return params | _feed_forward(config.hidden_size, config.intermediate_size)


def feed_forward_size(dim: int, multiple_of: int, ffn_dim_multiplier: float | None = None) -> int:
    """Width of the feed-forward in Meta's code."""
    width = int(2 * (4 * dim) / 3)
    if ffn_dim_multiplier is not None:
        width = int(ffn_dim_multiplier * width)
    return -(-width // multiple_of) * multiple_of


def _feed_forward(dim: int, intermediate_size: int) -> Json:
    """Settings that give exactly this width, Meta's own where they do."""
    exact: Json = {"multiple_of": intermediate_size}
    unrounded = feed_forward_size(dim, 1)
    if unrounded > intermediate_size:  # half of one more, so that truncation cannot give one less
        exact["ffn_dim_multiplier"] = (intermediate_size + 0.5) / unrounded
    for settings in (*_RELEASED, exact):
        if feed_forward_size(dim, **settings) == intermediate_size:
            return settings
    raise AssertionError(f"no settings give {intermediate_size=} with {dim=}")


def _check_expressible(config: ModelConfig) -> None:
    if config.qkv_bias:
        raise UserError("qkv_bias: Meta's format has no biases; choose another format")
    if config.rope_scaling is not None:
        raise UserError(
            f"rope_scaling ({config.rope_scaling.type}, factor {config.rope_scaling.factor:g}): "
            "Meta's format cannot express it, and the model would be read without; choose another"
        )
    if config.width_per_head * config.num_heads != config.hidden_size:
        raise UserError(
            f"head_dim={config.width_per_head}: Meta's format has only heads of hidden_size / "
            f"num_heads = {config.hidden_size / config.num_heads:g}; choose another format"
        )
