"""Train a SentencePiece BPE tokenizer of Llama-2's kind."""

import heapq
import io
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from dongwu_jax.errors import UserError
from dongwu_jax.output_files import check_output_file, write_output_file

_MAX_PART_BYTES = 4000  # the trainer drops sentences beyond max_sentence_length
_MAX_CHARS_PER_PART = _MAX_PART_BYTES // 4


def train_sentencepiece(
    texts: Iterable[str],
    model_path: Path,
    vocab_size: int,
    max_characters: int = 100_000_000,
    seed: int = 0,
) -> None:
    """Train on a uniform sample of the texts and write a `.model` file.

    BPE with byte fallback, every digit its own piece, no normalisation; unk, bos, eos are 0, 1, 2
    and there is no pad.

    Args:
        texts: documents; all are read, at most `max_characters` are kept in memory.
        model_path: the file to write, complete or not at all.
        vocab_size: pieces, bytes and control tokens included.
        max_characters: size of the sample; training needs some 20 to 50 bytes for each.
        seed: of the sample.

    Raises:
        UserError: there is no text, the vocabulary does not fit the corpus, or the file cannot be
            written.
    """
    if model_path.suffix != ".model":
        raise UserError(f"{model_path}: the name of a SentencePiece model must end in .model")
    check_output_file(model_path)
    sample = _sample(texts, max_characters, seed)
    if not any(part.strip() for part in sample):
        raise UserError("the input has no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            required_chars="0123456789",
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.99995,
            max_sentence_length=_MAX_PART_BYTES + 1,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=len(os.sched_getaffinity(0)),
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(_explain(str(error), vocab_size)) from None
    write_output_file(model_path, model.getvalue())


def _sample(texts: Iterable[str], max_characters: int, seed: int) -> list[str]:
    """A uniform sample of the parts of all texts, in their order, within the size."""
    generator = random.Random(seed)
    kept: list[tuple[float, int, str]] = []  # a heap: the part with the lowest draw goes first
    size = 0
    for number, part in enumerate(_parts(texts)):
        heapq.heappush(kept, (generator.random(), number, part))
        size += len(part)
        while size > max_characters and len(kept) > 1:
            size -= len(heapq.heappop(kept)[2])
    return [part for _, _, part in sorted(kept, key=lambda entry: entry[1])]


def _parts(texts: Iterable[str]) -> Iterator[str]:
    """Lines of the texts, long ones in parts the trainer accepts; NUL ends a part."""
    for text in texts:
        for line in re.split(r"[\n\0]", text):
            for start in range(0, len(line), _MAX_CHARS_PER_PART):
                yield line[start : start + _MAX_CHARS_PER_PART]


def _explain(message: str, vocab_size: int) -> str:
    """The trainer's complaint as something the user can act on."""
    if too_high := re.search(r"Vocabulary size too high.*?<= (\d+)", message, re.DOTALL):
        return (
            f"vocab_size={vocab_size}: the corpus allows at most {too_high[1]} pieces; lower it, "
            "or give more text"
        )
    if too_low := re.search(r"smaller than required_chars.*?(\d+) vs (\d+)", message, re.DOTALL):
        return (
            f"vocab_size={vocab_size}: the 256 bytes, 3 control tokens and the characters of the "
            f"corpus already need {too_low[2]}; raise it"
        )
    return f"the tokenizer cannot be trained with vocab_size={vocab_size}: {message.strip()}"
