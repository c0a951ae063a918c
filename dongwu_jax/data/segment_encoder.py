"""Fast exact SentencePiece BPE: cut a text where no token can cross, encode each segment once.

BPE starts from single characters and joins neighbours when together they are a piece. So a token
lies across two adjacent characters only if some piece contains these two next to each other. Cut
everywhere else, and each segment can be encoded on its own: text repeats its words, so nearly all
segments were met before, and `SegmentTable` has their ids.

Without byte fallback SentencePiece makes one unknown token of consecutive unknown characters, so
those are never separated.
"""

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from dongwu_jax.data.segment_table import NUM_CODE_POINTS, SegmentTable, code_points
from dongwu_jax.data.tokenizers import SentencePieceTokenizer

_SPACE = "\u2581"  # what SentencePiece writes for a space
_UNKNOWN, _ALONE = 0, 1  # classes of characters that are no piece, and that never join
_MAX_CLASSES = 4096  # 16 MB of join table; rarer characters share the last class
_WINDOW = 1 << 16  # characters encoded at once: half a megabyte an array

_protos: Any = sentencepiece_model_pb2  # generated code without types


class SegmentEncoder:
    """Encodes many texts with a BPE model, the same ids as SentencePiece itself."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        proto = _read_proto(tokenizer)
        self._processor = tokenizer.processor
        self._class_of, self._joins = _join_table(tokenizer.processor, proto)
        normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
        self._keeps_text = not (
            normalizer.precompiled_charsmap
            or normalizer.remove_extra_whitespaces
            or trainer.treat_whitespace_as_suffix
            or not normalizer.escape_whitespaces
        )
        self._prefix = " " if normalizer.add_dummy_prefix else ""
        self._segments = SegmentTable(_without_normalization(proto))

    @staticmethod
    def supports(tokenizer: SentencePieceTokenizer) -> bool:
        """Whether the model is BPE, the kind whose segments are independent."""
        return _read_proto(tokenizer).trainer_spec.model_type == _protos.TrainerSpec.BPE

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts, without beginning or end tokens.

        Returns:
            the ids of all texts one after the other, int32 [tokens], and the number of ids of
            each text, int64 [texts].
        """
        counts = np.zeros(len(texts), np.int64)
        tokens = [np.empty(0, np.int32)]
        for owners, parts in self._windows(texts):
            window_tokens, window_counts = self._encode_window(parts)
            tokens.append(window_tokens)
            np.add.at(counts, owners, window_counts)  # a long text has parts in several windows
        return np.concatenate(tokens), counts

    def _windows(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
        """Normalised texts, or parts of long ones, in groups of about _WINDOW characters."""
        owners: list[int] = []
        parts: list[str] = []
        size = 0
        for owner, text in enumerate(texts):
            for part in self._parts(self._normalize(text)):
                owners.append(owner)
                parts.append(part)
                size += len(part)
                if size >= _WINDOW:
                    yield owners, parts
                    owners, parts, size = [], [], 0
        if parts:
            yield owners, parts

    def _normalize(self, text: str) -> str:
        """The text as BPE sees it, except that spaces may still be written as spaces."""
        if self._keeps_text:
            return self._prefix + text if text else ""
        return self._processor.normalize(text)

    def _parts(self, text: str) -> Iterator[str]:
        """A long normalised text in parts, cut where no token can cross; nothing if empty."""
        start = 0
        while len(text) - start > 2 * _WINDOW:
            stop = start + _WINDOW
            while stop < len(text) and self._joins_at(text, stop):
                stop += 1
            yield text[start:stop]
            start = stop
        if start < len(text):
            yield text[start:] if start else text

    def _joins_at(self, text: str, position: int) -> bool:
        left, right = self._class_of[[ord(text[position - 1]), ord(text[position])]]
        return bool(self._joins[left, right])

    def _encode_window(self, parts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of normalised, non-empty texts, and the number of ids of each."""
        text = "".join(parts)
        ends = np.cumsum([len(part) for part in parts])
        codes = code_points(text)
        cuts = self._cuts(codes, ends)
        spans = self._segments.find(text, codes, cuts)
        tokens, token_ends = self._segments.gather(spans)
        last_segments = np.searchsorted(cuts, ends) - 1
        return tokens, np.diff(token_ends[last_segments], prepend=0)

    def _cuts(self, codes: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Positions between which segments lie, with 0 and the length."""
        classes = self._class_of.take(codes)
        pairs = classes[:-1] * len(self._joins)
        pairs += classes[1:]
        is_cut = np.empty(len(codes) + 1, bool)
        is_cut[0] = True
        np.logical_not(self._joins.ravel().take(pairs), out=is_cut[1:-1])
        is_cut[ends] = True
        return np.flatnonzero(is_cut)


def _read_proto(tokenizer: SentencePieceTokenizer) -> Any:
    return _protos.ModelProto.FromString(tokenizer.processor.serialized_model_proto())


def _without_normalization(proto: Any) -> sentencepiece.SentencePieceProcessor:
    """The same model for text that is normalised but for the writing of spaces."""
    bare = _protos.ModelProto()
    bare.CopyFrom(proto)
    bare.normalizer_spec.Clear()
    bare.normalizer_spec.name = "identity"
    bare.normalizer_spec.add_dummy_prefix = False
    bare.normalizer_spec.remove_extra_whitespaces = False
    bare.normalizer_spec.escape_whitespaces = proto.normalizer_spec.escape_whitespaces
    return sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())


def _text_pieces(processor: sentencepiece.SentencePieceProcessor) -> list[str]:
    """The pieces that text can become, but for single bytes and unknown characters."""
    ids = list(range(processor.get_piece_size()))
    kinds = (processor.is_control(ids), processor.is_unknown(ids), processor.is_byte(ids))
    is_text = [
        not (control or unknown or byte) for control, unknown, byte in zip(*kinds, strict=True)
    ]
    return list(compress(processor.id_to_piece(ids), is_text))


def _join_table(
    processor: sentencepiece.SentencePieceProcessor, proto: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Classes of characters, and which may stand together inside a token.

    Returns:
        class of each code point, int64 [code points], and for a class on the left and one on
        the right whether they join, bool [classes, classes].
    """
    pieces = _text_pieces(processor)
    codes = code_points("".join(pieces))
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    lasts = np.cumsum(lengths) - 1
    has_right = np.ones(len(codes), bool)
    has_right[lasts] = False
    places = np.flatnonzero(has_right)
    left, right = codes[places], codes[places + 1]
    known = codes[lasts[lengths == 1]]
    class_of = np.zeros(NUM_CODE_POINTS, np.int64)  # _UNKNOWN
    class_of[known] = _ALONE
    times = np.bincount(np.concatenate([left, right]))
    joining = np.flatnonzero(times)
    ranked = joining[np.argsort(-times[joining], kind="stable")]
    num_classes = min(len(ranked) + 2, _MAX_CLASSES)
    class_of[ranked] = np.minimum(np.arange(len(ranked)) + 2, num_classes - 1)
    joins = np.zeros([num_classes, num_classes], bool)
    joins[class_of[left], class_of[right]] = True
    if proto.normalizer_spec.escape_whitespaces:
        class_of[ord(" ")] = class_of[ord(_SPACE)]
    if not proto.trainer_spec.byte_fallback:
        unknown = np.append(class_of[np.setdiff1d(joining, known)], _UNKNOWN)
        joins[np.ix_(unknown, unknown)] = True
    return class_of, joins
