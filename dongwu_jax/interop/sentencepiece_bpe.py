"""A SentencePiece BPE model as a `tokenizers` tokenizer that gives the same ids.

transformers can read `tokenizer.model` itself, but it drops the word-start mark before text that
begins with a space, and orders merges of equal score differently, so that indentation tokenises
otherwise than in training.
"""

import re
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_small_file

Proto = Any  # a protobuf message; its classes are made at run time

_WORD_START = "▁"


def convert_sentencepiece(path: Path) -> Tokenizer:
    """Build the tokenizer, with the begin-of-sequence token put before every text.

    Control tokens written out in a text, such as `</s>`, become those tokens, as always in Hugging
    Face; SentencePiece would spell them.

    Raises:
        UserError: the file is not a SentencePiece model, or not BPE.
    """
    model: Proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(read_small_file(path))
    except DecodeError as error:
        raise UserError(f"{path}: cannot be read as a SentencePiece model: {error}") from None
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise UserError(
            f"{path}: only SentencePiece models of type BPE can be exported to Hugging Face; "
            "name a folder with tokenizer.json by --tokenizer"
        )
    for name in ("unk_id", "bos_id"):
        number = getattr(model.trainer_spec, name)
        if number >= len(model.pieces) or (number < 0 and name == "unk_id"):
            raise UserError(
                f"{path}: {name}={number} is none of its {len(model.pieces)} pieces; the file is "
                "damaged"
            )
    user_symbols = [p.piece for p in model.pieces if p.type == p.USER_DEFINED]
    tokenizer = Tokenizer(_bpe(model, whole_symbols=bool(user_symbols)))
    try:
        tokenizer.normalizer = _normalizer(model.normalizer_spec)
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: its normalizer cannot be converted: {error}") from None
    if user_symbols:  # found in the text before anything is merged, the longest first
        longest_first = sorted(user_symbols, key=len, reverse=True)
        pattern = Regex("|".join(map(re.escape, longest_first)))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = _decoder(model.normalizer_spec.add_dummy_prefix)
    special = [p.piece for p in model.pieces if p.type in (p.CONTROL, p.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in special])
    if model.trainer_spec.bos_id >= 0:
        bos = model.pieces[model.trainer_spec.bos_id].piece
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", f"{bos}:1", "$B:1"],
            special_tokens=[(bos, model.trainer_spec.bos_id)],
        )
    return tokenizer


def _bpe(model: Proto, whole_symbols: bool) -> models.BPE:
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    mergeable = {p.piece: p.score for p in model.pieces if p.type in (p.NORMAL, p.UNUSED)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in mergeable
        for cut in range(1, len(piece))
        if piece[:cut] in mergeable and piece[cut:] in mergeable
    ]

    # SentencePiece merges the pair of highest score and, among equals, the leftmost, so that a run
    # of spaces grows from the left: in a ranking, the longer piece and the longer left part first.
    def rank(merge: tuple[str, str]) -> tuple[float, int, int]:
        left, right = merge
        return -mergeable[left + right], -len(left + right), -len(left)

    return models.BPE(
        vocab=vocabulary,
        merges=sorted(merges, key=rank),
        unk_token=model.pieces[model.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
        ignore_merges=whole_symbols,
    )


def _normalizer(spec: Proto) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {_WORD_START}]+\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_WORD_START))
    steps.append(normalizers.Replace(" ", _WORD_START))
    return normalizers.Sequence(steps)


def _decoder(dummy_prefix: bool) -> decoders.Decoder:
    steps = [decoders.Replace(_WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
