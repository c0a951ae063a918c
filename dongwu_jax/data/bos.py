"""How a text begins for a model: with a beginning-of-sequence token or without."""

from dongwu_jax.data.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer


def beginning_ids(tokenizer: SentencePieceTokenizer | HuggingFaceTokenizer) -> list[int]:
    """BOS, or nothing: as Hugging Face puts it before the texts of this tokenizer.

    A `tokenizer.json` says so itself; SentencePiece models that have a BOS get it, as in Llama.
    """
    if tokenizer.bos_id is None:
        return []
    if isinstance(tokenizer, HuggingFaceTokenizer) and not tokenizer.prepends_bos:
        return []
    return [tokenizer.bos_id]
