"""Fast exact SentencePiece BPE: cut a text where no token can cross, encode each segment once.

BPE starts from single characters and joins neighbours when together they are a piece. So a token
lies across two adjacent characters only if some piece contains these two next to each other. Cut
everywhere else, and each segment can be encoded on its own: text repeats its words, so nearly all
segments were met before. Single characters, frequent in Chinese, are looked up by numpy.

Without byte fallback SentencePiece makes one unknown token of consecutive unknown characters, so
those are never separated.
"""

from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from dongwu_jax.data.tokenizers import SentencePieceTokenizer

_SPACE = "\u2581"  # what SentencePiece writes for a space
_NUM_CODE_POINTS = 0x110000
_UNKNOWN, _ALONE = 0, 1  # classes of characters that are no piece, and that never join
_MAX_CLASSES = 4096  # 16 MB of join table; rarer characters share the last class
_WINDOW = 1 << 16  # characters encoded at once: arrays stay in the cache of the processor
_MAX_SEGMENTS = 300_000  # remembered before starting afresh, some 60 MB
_MAX_REMEMBERED = 64  # characters; longer segments hardly come back

_protos: Any = sentencepiece_model_pb2  # generated code without types


class SegmentEncoder:
    """Encodes many texts with a BPE model, the same ids as SentencePiece itself."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        proto = _read_proto(tokenizer)
        self._processor = tokenizer.processor
        self._class_of, self._joins = _join_table(proto)
        normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
        self._keeps_text = not (
            normalizer.precompiled_charsmap
            or normalizer.remove_extra_whitespaces
            or trainer.treat_whitespace_as_suffix
            or not normalizer.escape_whitespaces
        )
        self._prefix = " " if normalizer.add_dummy_prefix else ""
        self._segments = _SegmentTable(_without_normalization(proto))

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
            np.add.at(counts, owners, window_counts)
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
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.intp)
        cuts = self._cuts(codes, ends)
        starts, stops = cuts[:-1], cuts[1:]
        slots = self._segments.slots_of(text, codes, starts, stops)
        tokens, token_ends = self._segments.gather(slots)
        last_segments = np.searchsorted(stops, ends)
        return tokens, np.diff(token_ends[last_segments], prepend=0)

    def _cuts(self, codes: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Positions between which segments lie, with 0 and the length."""
        classes = self._class_of.take(codes)
        pairs = classes[:-1].astype(np.intp)
        pairs *= len(self._joins)
        pairs += classes[1:]
        is_cut = np.empty(len(codes) + 1, bool)
        is_cut[0] = True
        np.logical_not(self._joins.ravel().take(pairs), out=is_cut[1:-1])
        is_cut[ends] = True
        return np.flatnonzero(is_cut)


class _SegmentTable(dict[str, int]):
    """Remembers the ids of segments; each segment has a slot, its place in three flat arrays."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        super().__init__()
        self._processor = processor
        self._forget()

    def _forget(self) -> None:
        self.clear()
        self._first = array("q", [0])  # slot 0 is empty: a character not met yet
        self._count = array("q", [0])
        self._ids = array("i")
        self._new: list[str] = []
        self._slot_of_char = np.zeros(_NUM_CODE_POINTS, np.int32)

    def __missing__(self, segment: str) -> int:
        """Give a new segment the next slot; `_encode_new` fills it."""
        slot = len(self._first) + len(self._new)
        self._new.append(segment)
        self[segment] = slot
        return slot

    def slots_of(
        self, text: str, codes: np.ndarray, starts: np.ndarray, stops: np.ndarray
    ) -> np.ndarray:
        """The slots of the segments text[start:stop], int64 [segments]."""
        if len(self._first) > _MAX_SEGMENTS or len(self._ids) > 8 * _MAX_SEGMENTS:
            self._forget()
        first_codes = codes.take(starts)
        is_long = stops - starts > 1
        slots = self._slot_of_char.take(first_codes).astype(np.int64)
        new_chars = (slots == 0) & ~is_long
        if new_chars.any():
            for code in np.unique(first_codes[new_chars]).tolist():
                self._slot_of_char[code] = self.__missing__(chr(code))
            slots = self._slot_of_char.take(first_codes).astype(np.int64)
        where = np.flatnonzero(is_long)
        bounds = zip(starts.take(where).tolist(), stops.take(where).tolist(), strict=True)
        segments = [text[i:j] for i, j in bounds]
        slots[where] = np.fromiter(map(self.__getitem__, segments), np.int64, len(segments))
        if self._new:
            self._encode_new()
        return slots

    def _encode_new(self) -> None:
        for segment, ids in zip(
            self._new, self._processor.encode(self._new, num_threads=1), strict=True
        ):
            self._first.append(len(self._ids))
            self._count.append(len(ids))
            self._ids.extend(ids)
            if len(segment) > _MAX_REMEMBERED:
                del self[segment]
        self._new = []

    def gather(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids in these slots, int32 [tokens], and where each slot's end in them."""
        counts = np.frombuffer(self._count, np.int64).take(slots)
        ends = np.cumsum(counts)
        sources = np.frombuffer(self._first, np.int64).take(slots)
        sources -= ends
        sources += counts
        places = np.repeat(sources, counts)
        places += np.arange(len(places))
        return np.frombuffer(self._ids, np.int32).take(places), ends


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


def _join_table(proto: Any) -> tuple[np.ndarray, np.ndarray]:
    """Classes of characters, and which may stand together inside a token.

    Returns:
        class of each code point, uint16 [code points], and for a class on the left and one on
        the right whether they join, bool [classes, classes].
    """
    piece_kinds = _protos.ModelProto.SentencePiece
    kinds = (piece_kinds.NORMAL, piece_kinds.USER_DEFINED, piece_kinds.UNUSED)
    pieces = [piece.piece for piece in proto.pieces if piece.type in kinds]
    pairs = {pair for piece in pieces for pair in pairwise(piece)}
    partners: dict[str, int] = {}
    for left, right in pairs:
        partners[left] = partners.get(left, 0) + 1
        partners[right] = partners.get(right, 0) + 1
    class_of = np.full(_NUM_CODE_POINTS, _UNKNOWN, np.uint16)
    known = {piece for piece in pieces if len(piece) == 1}
    class_of[[ord(char) for char in known]] = _ALONE
    ranked = sorted(partners, key=lambda char: (-partners[char], char))
    classes = np.minimum(np.arange(len(ranked)) + 2, _MAX_CLASSES - 1)
    class_of[[ord(char) for char in ranked]] = classes
    joins = np.zeros([int(class_of.max()) + 1] * 2, bool)
    for left, right in pairs:
        joins[class_of[ord(left)], class_of[ord(right)]] = True
    if proto.normalizer_spec.escape_whitespaces:
        class_of[ord(" ")] = class_of[ord(_SPACE)]
    if not proto.trainer_spec.byte_fallback:
        unknown = [_UNKNOWN, *{int(class_of[ord(char)]) for char in partners if char not in known}]
        joins[np.ix_(unknown, unknown)] = True
    return class_of, joins
