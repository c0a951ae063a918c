"""Ways to damage bytes: what disks, copies and attackers do to a file of any format."""

import random
import struct
from collections.abc import Callable

Damage = Callable[[random.Random, bytes], bytes]

_EXTREMES = (
    *(0, 1, -1, 2, 7, 100, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**60, 2**62, 2**63 - 1, -(2**31), -(2**63)),
)
_HEADER_BYTES = 256  # where lengths and counts lie in most formats
_FOREIGN = (b"\xff", b"\xfe\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\x00" * 9, b"\r", b"\\")


def damage_bytes(draw: random.Random, data: bytes) -> bytes:
    """One kind of damage, or two after each other."""
    for _ in range(draw.choice((1, 1, 1, 2))):
        data = draw.choice(_DAMAGES)(draw, data)
    return data


def _flip_bits(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(data), draw.choice((1, 1, 2, 8)))):
        changed[_place(draw, data)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set_byte(draw: random.Random, data: bytes) -> bytes:
    at = _place(draw, data)
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def _truncate(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _append(draw: random.Random, data: bytes) -> bytes:
    return data + draw.choice((draw.randbytes(draw.randrange(1, 64)), bytes(16), data))


def _double(draw: random.Random, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:stop] + data[start:stop] + data[stop:]


def _zero(draw: random.Random, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:start] + bytes(stop - start) + data[stop:]


def _randomize(draw: random.Random, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:start] + draw.randbytes(stop - start) + data[stop:]


def _remove(draw: random.Random, data: bytes) -> bytes:
    start, stop = _span(draw, data)
    return data[:start] + data[stop:]


def _swap(draw: random.Random, data: bytes) -> bytes:
    size = draw.choice((1, 2, 4, 8, 16))
    if len(data) < 2 * size:
        return data[::-1]
    first, second = sorted(draw.sample(range(len(data) - size + 1), 2))
    if second < first + size:
        return data
    one, other = data[first : first + size], data[second : second + size]
    return data[:first] + other + data[first + size : second] + one + data[second + size :]


def _extreme_number(draw: random.Random, data: bytes) -> bytes:
    """A number far too large, small or negative, as a length field of 1 to 8 bytes."""
    size, order = draw.choice((1, 2, 4, 4, 8, 8, 8)), draw.choice("<<<>")
    value = draw.choice(_EXTREMES) % (1 << 8 * size)
    packed = struct.pack(f"{order}{'BHIQ'[(1, 2, 4, 8).index(size)]}", value)
    at = _place(draw, data)
    at -= at % draw.choice((1, 1, size))
    return data[:at] + packed + data[at + size :]


def _insert_foreign(draw: random.Random, data: bytes) -> bytes:
    """Bytes that are no UTF-8, or that end texts."""
    at = _place(draw, data)
    return data[:at] + draw.choice(_FOREIGN) + data[at:]


def _replace_digits(draw: random.Random, data: bytes) -> bytes:
    """A number written in letters, by another one."""
    digits = [i for i, byte in enumerate(data) if 0x30 <= byte <= 0x39]
    if not digits:
        return _set_byte(draw, data)
    at = draw.choice(digits)
    return data[:at] + str(draw.choice(_EXTREMES)).encode() + data[at + 1 :]


def _place(draw: random.Random, data: bytes) -> int:
    """A position: half of the time where headers are."""
    if not data:
        return 0
    return draw.randrange(min(len(data), draw.choice((_HEADER_BYTES, len(data)))))


def _span(draw: random.Random, data: bytes) -> tuple[int, int]:
    start = _place(draw, data)
    longest = draw.choice((4, 16, 64, max(1, len(data))))
    return start, min(len(data), start + draw.randrange(1, longest + 1))


_DAMAGES: tuple[Damage, ...] = (
    _flip_bits,
    _flip_bits,
    _set_byte,
    _truncate,
    _append,
    _double,
    _zero,
    _randomize,
    _remove,
    _swap,
    _extreme_number,
    _extreme_number,
    _insert_foreign,
    _replace_digits,
)
