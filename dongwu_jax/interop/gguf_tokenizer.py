"""The tokenizer inside a GGUF file, written as `tokenizer.json` and `tokenizer_config.json`."""

import json
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf_tokenizer import fast_tokenizer_settings

# Pre-tokenizers whose text is cut as GPT-2 does it, which is how transformers reads these files.
_GPT2_SPLIT = ("default", "gpt-2", "smollm")
_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def write_gguf_tokenizer(fields: dict[str, Any], folder: Path, origin: Path) -> None:
    """Write the tokenizer files; nothing when the kind of tokenizer is not byte-level BPE.

    Args:
        fields: the file's fields `tokenizer.*`.
        origin: the file, for errors.

    Raises:
        UserError: a field is missing, or of another kind, or they contradict each other.
    """
    kind = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind[0] != "gpt2" or kind[1] not in _GPT2_SPLIT:
        return
    tokens = _texts(fields, "tokenizer.ggml.tokens", origin)
    special = {
        name: _token(fields, field, tokens, origin)
        for name, field in _SPECIAL.items()
        if field in fields
    }
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", False))
    bos = special.get("bos_token") if add_bos else None
    _byte_level_bpe(fields, bos, origin).save(str(folder / "tokenizer.json"))
    settings = fast_tokenizer_settings() | special | {"add_bos_token": add_bos}
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _texts(fields: dict[str, Any], name: str, origin: Path) -> list[str]:
    texts = fields.get(name)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        _refuse(origin, f"{name} must be a list of texts")
    return texts


def _token(fields: dict[str, Any], name: str, tokens: list[str], origin: Path) -> str:
    number = fields[name]
    if type(number) is not int or not 0 <= number < len(tokens):
        _refuse(origin, f"{name}={number!r} is none of its {len(tokens)} tokens")
    return tokens[number]


def _byte_level_bpe(fields: dict[str, Any], bos: str | None, origin: Path) -> Tokenizer:
    tokens = _texts(fields, "tokenizer.ggml.tokens", origin)
    merges = []
    for merge in _texts(fields, "tokenizer.ggml.merges", origin):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    types = fields.get("tokenizer.ggml.token_type", [])
    if not isinstance(types, list):
        _refuse(origin, "tokenizer.ggml.token_type must be a list of numbers")
    try:
        tokenizer = Tokenizer(
            models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges)
        )
    except Exception as error:  # the library raises plain Exception
        _refuse(origin, f"tokenizer.ggml: the merges do not fit the tokens: {error}")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    by_type = list(zip(tokens, types, strict=False))
    control = [AddedToken(t, normalized=False) for t, kind in by_type if kind == _CONTROL]
    user = [AddedToken(t, normalized=False) for t, kind in by_type if kind == _USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(user)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", f"{bos}:1", "$B:1"],
            special_tokens=[(bos, tokens.index(bos))],
        )
    return tokenizer


def _refuse(origin: Path, problem: str) -> NoReturn:
    raise UserError(f"{origin}: {problem}; copy the file again, or give --tokenizer another one")
