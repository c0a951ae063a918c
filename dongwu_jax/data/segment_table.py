"""Remembers the token ids of pieces of text, and finds those of a whole window of text at once.

Python objects for every word would cost more than encoding it anew, so segments are found by
numpy: a rolling hash gives each segment of a window a key, a table of open addressing leads from
keys to slots, and the characters are compared, so that equal keys of unequal segments do no harm.
"""

from array import array
from itertools import chain

import numpy as np
import sentencepiece

NUM_CODE_POINTS = 0x110000
_MAX_SEGMENTS = 300_000  # remembered before starting afresh, some 50 MB
_MAX_REMEMBERED = 64  # characters; longer segments hardly come back
_FEW_SEGMENTS = 200  # encoded one by one: for a list SentencePiece starts a thread
_FIRST_TABLE_BITS = 12
_LENGTH_BITS = 31
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
_KEY_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64


class SegmentTable:
    """Encodes segments, each distinct one once.

    The ids of all segments lie in one array, and so do their characters. A span, start and length
    in one number, says which part of such an array belongs to a segment; no span is 0.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor
        self._keys_of = _RollingHash()
        self._forget()

    def _forget(self) -> None:
        self._ids = array("i", [0])
        self._chars = array("q", [0])
        self._ids_of_char = np.zeros(NUM_CODE_POINTS, np.int64)
        self._long = _KeyTable()

    def find(self, text: str, codes: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        """Where the ids of the segments between neighbouring cuts are: spans, int64 [segments].

        Args:
            text: a window of text.
            codes: its code points, int64 [characters].
            cuts: where segments meet, with 0 and the length of the text [segments + 1].
        """
        if max(self._long.count, len(self._ids) // 8, len(self._chars) // 32) > _MAX_SEGMENTS:
            self._forget()
        chars = codes.take(cuts[:-1])
        spans = self._ids_of_char.take(chars)
        long = np.flatnonzero(np.diff(cuts) > 1)
        if len(long):
            spans[long] = self._find_long(text, codes, cuts.take(long), cuts.take(long + 1))
        new = np.flatnonzero(spans == 0)
        if len(new):
            new_chars = np.unique(chars[new])
            self._ids_of_char[new_chars] = self._encode([chr(c) for c in new_chars.tolist()])
            spans[new] = self._ids_of_char[chars[new]]
        return spans

    def gather(self, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids in these spans, int32 [tokens], and where each span's end in them."""
        counts = spans & _LENGTH_MASK
        ends = np.cumsum(counts)
        places = _ragged_places(spans >> _LENGTH_BITS, counts, ends)
        return np.frombuffer(self._ids, np.int32).take(places), ends

    def _find_long(
        self, text: str, codes: np.ndarray, starts: np.ndarray, stops: np.ndarray
    ) -> np.ndarray:
        """As `find`, for segments text[start:stop] of several characters."""
        lengths = stops - starts
        ends = np.cumsum(lengths)
        chars = codes.take(_ragged_places(starts, lengths, ends))
        keys = self._keys_of(chars, lengths, ends)
        id_spans, char_spans = self._long.find(keys)
        new = np.flatnonzero(id_spans == 0)
        if len(new):
            new_keys, firsts, which = np.unique(keys[new], return_index=True, return_inverse=True)
            firsts = new[firsts]
            segments = _slices(text, starts[firsts], stops[firsts])
            new_ids, new_chars = self._encode(segments), self._store(segments)
            id_spans[new], char_spans[new] = new_ids[which], new_chars[which]
            kept = lengths[firsts] <= _MAX_REMEMBERED
            self._long.insert(new_keys[kept], new_ids[kept], new_chars[kept])
        others = self._unequal(char_spans, chars, lengths, ends)
        if len(others):
            id_spans[others] = self._encode(_slices(text, starts[others], stops[others]))
        return id_spans

    def _unequal(
        self, spans: np.ndarray, chars: np.ndarray, lengths: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        """Which segments are others than the characters in `spans`, though their keys are equal."""
        differ = spans & _LENGTH_MASK != lengths
        places = _ragged_places(spans >> _LENGTH_BITS, lengths, ends)
        # clip: where lengths differ, places may lie behind the last character
        wrong = np.frombuffer(self._chars, np.int64).take(places, mode="clip") != chars
        if wrong.any():
            differ[np.searchsorted(ends, np.flatnonzero(wrong), side="right")] = True
        return np.flatnonzero(differ)

    def _encode(self, segments: list[str]) -> np.ndarray:
        """Add the ids of segments; their spans."""
        if len(segments) < _FEW_SEGMENTS:
            ids = [self._processor.encode(segment) for segment in segments]
        else:
            ids = self._processor.encode(segments, num_threads=1)
        start = len(self._ids)
        self._ids.extend(chain.from_iterable(ids))
        return _spans(start, np.fromiter(map(len, ids), np.int64, len(ids)))

    def _store(self, segments: list[str]) -> np.ndarray:
        """Add the characters of segments; their spans."""
        start = len(self._chars)
        self._chars.frombytes(code_points("".join(segments)).tobytes())
        return _spans(start, np.fromiter(map(len, segments), np.int64, len(segments)))


class _RollingHash:
    """Keys of substrings: sums of code points times powers of a base, modulo 2**64."""

    def __init__(self) -> None:
        self._powers = self._inverse_powers = np.ones(1, np.uint64)

    def __call__(self, codes: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Keys of substrings that lie one after the other.

        Args:
            codes: code points of them all, int64 [characters].
            lengths: of the substrings, above 0, int64 [substrings].
            ends: the cumulative sum of `lengths`.

        Returns:
            keys, uint64 [substrings].
        """
        if len(self._powers) < len(codes):
            self._powers = _powers(_KEY_BASE, len(codes))
            self._inverse_powers = _powers(pow(_KEY_BASE, -1, 1 << 64), len(codes))
        terms = codes.view(np.uint64) * self._powers[: len(codes)]
        keys = np.diff(np.cumsum(terms).take(ends - 1), prepend=np.uint64(0))
        keys *= self._inverse_powers.take(ends - lengths)
        keys += lengths.view(np.uint64)
        keys ^= keys >> np.uint64(32)
        keys *= np.uint64(_KEY_BASE)
        return keys


class _KeyTable:
    """From uint64 keys to two spans, by open addressing.

    Attributes:
        count: number of keys.
    """

    def __init__(self) -> None:
        self.count = 0
        self._resize(_FIRST_TABLE_BITS)

    def _resize(self, bits: int) -> None:
        self._bits = bits
        self._keys = np.zeros(1 << bits, np.uint64)
        self._id_spans = np.zeros(1 << bits, np.int64)
        self._char_spans = np.zeros(1 << bits, np.int64)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spans of ids and of characters, int64 [keys]; 0 where a key is not there."""
        places = self._first_places(keys)
        spans = self._id_spans.take(places)
        astray = np.flatnonzero((self._keys.take(places) != keys) & (spans != 0))
        while len(astray):
            places[astray] = next_places = (places[astray] + 1) & (len(self._keys) - 1)
            spans[astray] = found = self._id_spans[next_places]
            astray = astray[(self._keys[next_places] != keys[astray]) & (found != 0)]
        return spans, self._char_spans.take(places)

    def insert(self, keys: np.ndarray, id_spans: np.ndarray, char_spans: np.ndarray) -> None:
        """Put in keys that are not there yet, each once."""
        self.count += len(keys)
        if self.count > len(self._keys) // 2:
            old = np.flatnonzero(self._id_spans)
            keys = np.concatenate([self._keys[old], keys])
            id_spans = np.concatenate([self._id_spans[old], id_spans])
            char_spans = np.concatenate([self._char_spans[old], char_spans])
            self._resize(self.count.bit_length() + 2)
        places = self._first_places(keys)
        waiting = np.arange(len(keys))
        while len(waiting):
            free = waiting[self._id_spans[places[waiting]] == 0]
            self._id_spans[places[free]] = id_spans[free]  # of several for one place, one gets it
            waiting = waiting[self._id_spans[places[waiting]] != id_spans[waiting]]
            places[waiting] = (places[waiting] + 1) & (len(self._keys) - 1)
        self._keys[places] = keys
        self._char_spans[places] = char_spans

    def _first_places(self, keys: np.ndarray) -> np.ndarray:
        return (keys >> np.uint64(64 - self._bits)).view(np.int64)


def code_points(text: str) -> np.ndarray:
    """The code points of a text, int64 [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)


def _slices(text: str, starts: np.ndarray, stops: np.ndarray) -> list[str]:
    return [text[i:j] for i, j in zip(starts.tolist(), stops.tolist(), strict=True)]


def _ragged_places(firsts: np.ndarray, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each range the indices first, first + 1, ..., one range after the other.

    Args:
        firsts: of the ranges, int64 [ranges].
        counts: of indices in each range [ranges].
        ends: the cumulative sum of `counts`.
    """
    places = np.repeat(firsts - ends + counts, counts)
    places += np.arange(len(places))
    return places


def _spans(start: int, lengths: np.ndarray) -> np.ndarray:
    """Spans of these lengths, one after the other from `start` on."""
    starts = np.cumsum(lengths) - lengths + start
    return starts << _LENGTH_BITS | lengths


def _powers(base: int, count: int) -> np.ndarray:
    """base**0, base**1, ... modulo 2**64, uint64 [count]."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
