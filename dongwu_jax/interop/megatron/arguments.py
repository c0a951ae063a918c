"""Reading the training arguments in a Megatron checkpoint: its architecture, as ModelConfig."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError

# Fields that change what is computed, each with the values that mean a Llama. An absent field means
# that the code of its time did not know the thing.
_LLAMA_ONLY: dict[str, tuple[tuple[object, ...], str]] = {
    "num_experts": ((None, 0), "mixtures of experts"),
    "multi_latent_attention": ((None, False), "multi-latent attention"),
    "experimental_attention_variant": ((None,), "attention variants"),
    "linear_attention_freq": ((None,), "linear attention"),
    "attention_output_gate": ((None, False), "gated attention"),
    "softmax_type": ((None, "vanilla"), "other kinds of softmax"),
    "window_size": ((None,), "attention over a window"),
    "qk_layernorm": ((None, False), "norms of query and key"),
    "qk_l2_norm": ((None, False), "norms of query and key"),
    "normalization": ((None, "RMSNorm"), "norms other than RMSNorm"),
    "apply_layernorm_1p": ((None, False), "norm weights stored minus one"),
    "layernorm_zero_centered_gamma": ((None, False), "norm weights stored minus one"),
    "apply_residual_connection_post_layernorm": ((None, False), "residuals taken after the norm"),
    "swiglu": ((None, True), "feed-forwards other than SwiGLU"),
    "squared_relu": ((None, False), "feed-forwards other than SwiGLU"),
    "quick_geglu": ((None, False), "feed-forwards other than SwiGLU"),
    "glu_linear_offset": ((None, 0), "an offset in the feed-forward"),
    "activation_func_clamp_value": ((None,), "a clamped feed-forward"),
    "add_bias_linear": ((None, False), "biases of all linear layers"),
    "rotary_percent": ((None, 1), "heads rotated in part"),
    "use_rope_scaling": ((None, False), "Llama 3's scaling of rotary positions"),
    "rope_type": ((None, "rope"), "other kinds of rotary positions"),
    "no_rope_freq": ((None,), "layers without rotary positions"),
    "mrope_section": ((None,), "rotary positions of several dimensions"),
    "mtp_num_layers": ((None, 0), "prediction of several tokens"),
    "heterogeneous_layers_config_path": ((None,), "layers that differ from each other"),
    "heterogeneous_layers_config_encoded_json": ((None,), "layers that differ from each other"),
    "is_hybrid_model": ((None, False), "layers other than attention"),
    "hybrid_layer_pattern": ((None,), "layers other than attention"),
    "hybrid_override_pattern": ((None,), "layers other than attention"),
    "enable_mhc_connections": ((None, False), "hyper-connections"),
    "use_mup": ((None, False), "scaling by width (muP)"),
}


# Of settings that ModelConfig checks, for messages.
_MEGATRON_NAMES = {
    "head_dim": "kv_channels",
    "rms_norm_eps": "norm_epsilon",
    "rope_theta": "rotary_base",
    "initializer_range": "init_method_std",
}


@dataclass(frozen=True)
class WeightFacts:
    """What the tensors of a checkpoint say by themselves."""

    vocab_rows: int
    has_head: bool  # a head that may, in a pipeline, be a copy of the embedding
    head_is_own: bool  # the fork's head, never tied whatever the arguments say
    qkv_bias: bool


@dataclass(frozen=True)
class ReadArguments:
    """What the arguments and the tensors say together."""

    config: ModelConfig
    rotary_interleaved: bool  # rows of query and key are in Meta's order within a head
    consumed_samples: int | None
    notes: list[str]  # what was assumed, a sentence each


def read_arguments(args: object, weights: WeightFacts, where: Path) -> ReadArguments:
    """The architecture that a checkpoint's arguments describe.

    Args:
        args: the Namespace of the file; every field of it may be absent.
        where: the file, for messages.

    Raises:
        UserError: a needed field is missing or impossible, or asks for what a Llama of ours cannot
            compute.
    """
    check_supported(args, where)
    fields = _Fields(args, where)
    _note_what_is_not_said(fields)
    notes = fields.notes
    settings: dict[str, Any] = _sizes(fields) | _vocabulary(fields, weights)
    settings |= {
        "max_position_embeddings": _length(fields),
        "rms_norm_eps": _epsilon(fields),
        "rope_theta": fields.assumed("rotary_base", 10000),
        "rope_scaling": _rope_scaling(fields),
        "tie_word_embeddings": _is_tied(fields, weights),
        "qkv_bias": weights.qkv_bias,
        "initializer_range": fields.get("init_method_std") or 0.02,
    }
    try:
        config = ModelConfig.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        field = str(problem["loc"][0]) if problem["loc"] else "the sizes"
        raise UserError(f"{where}: args: {_MEGATRON_NAMES.get(field, field)}: {message}") from None
    consumed = fields.get("consumed_train_samples")
    return ReadArguments(
        config,
        rotary_interleaved=bool(fields.get("rotary_interleaved")),
        consumed_samples=consumed if isinstance(consumed, int) else None,
        notes=notes,
    )


def check_supported(args: object, where: Path) -> None:
    """Refuse arguments of a model that is no Llama of ours.

    Raises:
        UserError: naming the field.
    """
    fields = _Fields(args, where)
    for name, (accepted, what) in _LLAMA_ONLY.items():
        value = fields.get(name)
        if value not in accepted:
            raise UserError(f"{where}: args.{name}={value!r}: {what} are unsupported")
    kind = fields.get("position_embedding_type")
    if kind not in (None, "rope") and not _is_older_rope(fields):
        raise UserError(f"{where}: args.position_embedding_type={kind!r}: only 'rope' is supported")


def _is_older_rope(fields: "_Fields") -> bool:
    """The switch of 2023 that was later replaced by a kind, whose default meant other positions."""
    kind = fields.get("position_embedding_type")
    return bool(fields.get("use_rotary_position_embeddings")) and kind in (None, "learned_absolute")


def _note_what_is_not_said(fields: "_Fields") -> None:
    for name in ("normalization", "swiglu"):
        fields.assumed(name, _LLAMA_ONLY[name][0][1])
    if not _is_older_rope(fields):
        fields.assumed("position_embedding_type", "rope")


class _Fields:
    """Arguments by name, any of which may be absent; collects what was assumed instead."""

    def __init__(self, args: object, where: Path):
        if not isinstance(args, argparse.Namespace):
            raise UserError(f"{where}: args is a {type(args).__name__}, not a Namespace")
        self._values: dict[str, Any] = vars(args)
        self.where = where
        self.notes: list[str] = []

    def get(self, name: str) -> Any:
        """Its value; None when absent."""
        return self._values.get(name)

    def has(self, name: str) -> bool:
        return name in self._values

    def assumed(self, name: str, default: Any) -> Any:
        """Its value, or the default, with a note."""
        value = self.get(name)
        if value is None:
            self.notes.append(f"args has no {name}: {default} assumed")
            return default
        return value

    def whole(self, name: str) -> int:
        """A positive whole number that must be there."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            found = repr(value) if self.has(name) else "missing"
            raise UserError(
                f"{self.where}: args.{name} must be a positive whole number; it is {found}"
            )
        return value


def _sizes(fields: _Fields) -> dict[str, Any]:
    heads = fields.whole("num_attention_heads")
    return {
        "hidden_size": fields.whole("hidden_size"),
        "intermediate_size": fields.whole("ffn_hidden_size"),
        "num_layers": fields.whole("num_layers"),
        "num_heads": heads,
        "num_kv_heads": _kv_heads(fields, heads),
        "head_dim": fields.get("kv_channels"),
    }


def _kv_heads(fields: _Fields, heads: int) -> int:
    """`num_query_groups`, which holds 1 without meaning it when grouping is off."""
    groups = fields.get("num_query_groups")
    grouped = fields.get("group_query_attention")
    if grouped is None:  # an absent switch
        grouped = groups is not None and groups != 1
    return fields.whole("num_query_groups") if grouped else heads


def _vocabulary(fields: _Fields, weights: WeightFacts) -> dict[str, Any]:
    """Sizes by the weights; `vocab_size` of the arguments depends on the tokenizer, or its lack."""
    rows, known = weights.vocab_rows, fields.get("orig_vocab_size")
    if isinstance(known, int) and 0 < known <= rows:
        return {"vocab_size": known, "padded_vocab_size": None if known == rows else rows}
    fields.notes.append(
        f"the vocabulary has {rows} rows; how many are padding is not stored (true vocabulary size)"
    )
    return {"vocab_size": rows, "padded_vocab_size": None}


def _length(fields: _Fields) -> int:
    for name in ("max_position_embeddings", "seq_length"):
        if fields.get(name) is not None:
            return fields.whole(name)
    return fields.assumed("max_position_embeddings", 4096)


def _epsilon(fields: _Fields) -> float:
    """`norm_epsilon` of 2023 to 2025, `layernorm_epsilon` before and after."""
    newer, older = fields.get("norm_epsilon"), fields.get("layernorm_epsilon")
    if newer is not None and older is not None and newer != older:
        raise UserError(
            f"{fields.where}: args.norm_epsilon={newer!r} and args.layernorm_epsilon={older!r} "
            "differ"
        )
    return older if older is not None else fields.assumed("norm_epsilon", 1e-5)


def _rope_scaling(fields: _Fields) -> RopeScaling | None:
    factor = fields.get("rotary_seq_len_interpolation_factor")
    if factor is None or factor == 1:
        return None
    try:
        return RopeScaling(type="linear", factor=factor)
    except ValidationError:
        raise UserError(
            f"{fields.where}: args.rotary_seq_len_interpolation_factor={factor!r}: "
            "must be a number of at least 1"
        ) from None


def _is_tied(fields: _Fields, weights: WeightFacts) -> bool:
    if weights.head_is_own:
        return False
    untied = fields.get("untie_embeddings_and_output_weights")
    if untied is None:
        return not weights.has_head
    if untied and not weights.has_head:
        raise UserError(
            f"{fields.where}: args says that the head has weights of its own "
            "(untie_embeddings_and_output_weights), but the checkpoint holds none"
        )
    return not untied
