"""The tokenizer inside a GGUF file, written as `tokenizer.json` and `tokenizer_config.json`."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf_tokenizer import fast_tokenizer_settings

# Pre-tokenizers whose text is cut as GPT-2 does it, which is how transformers reads these files.
_GPT2_SPLIT = ("default", "gpt-2", "smollm")
_CONTROL, _USER_DEFINED = 3, 4


def write_gguf_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write the tokenizer files; nothing when the kind of tokenizer is not byte-level BPE.

    Args:
        fields: the file's fields `tokenizer.*`.

    Raises:
        UserError: the fields contradict each other.
    """
    kind = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind[0] != "gpt2" or kind[1] not in _GPT2_SPLIT:
        return
    tokens = fields["tokenizer.ggml.tokens"]
    special = {
        name: tokens[fields[field]]
        for name, field in (
            ("bos_token", "tokenizer.ggml.bos_token_id"),
            ("eos_token", "tokenizer.ggml.eos_token_id"),
            ("unk_token", "tokenizer.ggml.unknown_token_id"),
            ("pad_token", "tokenizer.ggml.padding_token_id"),
        )
        if field in fields
    }
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", False))
    bos = special.get("bos_token") if add_bos else None
    _byte_level_bpe(fields, bos).save(str(folder / "tokenizer.json"))
    settings = fast_tokenizer_settings() | special | {"add_bos_token": add_bos}
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _byte_level_bpe(fields: dict[str, Any], bos: str | None) -> Tokenizer:
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    try:
        tokenizer = Tokenizer(
            models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges)
        )
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"tokenizer.ggml: the merges do not fit the tokens: {error}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    types = fields.get("tokenizer.ggml.token_type", [])
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
