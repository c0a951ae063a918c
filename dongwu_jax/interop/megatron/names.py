"""What the names in a Megatron checkpoint mean, in any naming and spelling."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dongwu_jax.interop.megatron.tensors import BLOCK_ROWS, MEGATRON_LLAMA_NAMES, NAMINGS


@dataclass(frozen=True)
class FoundName:
    """What a name in a checkpoint means."""

    kind: str  # of the table; "tied_head" for the last stage's copy of a tied embedding
    layer: int | None  # as numbered in its file


_BLOCKS = re.compile(r"(?:encoder|transformer|decoder)\.layers\.(\d+)\.(.+)")
_IGNORED = re.compile(r"(.*\.)?_extra_state(/.*)?|.*rotary\w*\.inv_freq")


def _block_names() -> dict[str, str]:
    names = {getattr(row, naming): row.kind for row in BLOCK_ROWS for naming in NAMINGS[:3]}
    names |= {MEGATRON_LLAMA_NAMES[kind]: kind for kind in ("attention_norm", "mlp_norm")}
    return names


_BLOCK_NAMES: Mapping[str, str] = _block_names()
_OTHER_NAMES = {
    "embedding.word_embeddings.weight": "embedding",
    "output_layer.weight": "head",
    "lm_head.weight": "head",
    "word_embeddings_for_head.weight": "tied_head",
} | {
    f"{blocks}.{name}.weight": "final_norm"
    for blocks in ("encoder", "transformer", "decoder")
    for name in ("final_norm", "final_layernorm")
}


def find_name(stored_name: str) -> FoundName | None:
    """What a stored name means in any naming, old spellings included.

    Args:
        stored_name: keys joined by `/` or `.`.

    Returns:
        None for what carries no weights (`_extra_state`, rotary tables).

    Raises:
        KeyError: the name has no place in a Llama.
    """
    if _IGNORED.fullmatch(stored_name):
        return None
    name = stored_name.replace("/", ".").removeprefix("language_model.")
    in_block = _BLOCKS.fullmatch(name)
    if in_block is None:
        return FoundName(_OTHER_NAMES[name], None)
    rest = re.sub(r"^attention\.", "self_attention.", in_block[2])
    return FoundName(_BLOCK_NAMES[rest], int(in_block[1]))
