"""Zip archives of uncompressed, aligned members, as torch's own are.

The standard library computes checksums at a quarter of the speed that the processor can, which
would take longer than writing.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from zlib_ng.zlib_ng import crc32

_ALIGNMENT = 64
_PADDING_FIELD = 0x4246  # the id that torch gives to the padding of a member's header
_ZIP64_FIELD = 1
_ZIP64_ABOVE = 0x7FFFFFFF  # bytes: some readers take 32-bit fields to be signed
_IN_ZIP64_FIELD = 0xFFFFFFFF  # says that the value stands in the zip64 field instead
_MOST_MEMBERS = 0xFFFF
_VERSION, _VERSION_ZIP64 = 20, 45
_TIME, _DATE = 0, 0x21  # 1980-01-01: equal input gives equal bytes
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_END64_LOCATOR = struct.Struct("<4sIQI")


@dataclass(frozen=True)
class _Member:
    name: bytes
    checksum: int
    num_bytes: int
    offset: int  # of its header


class ZipWriter:
    """Writes an archive from the current position of a file, member after member."""

    def __init__(self, file: BinaryIO):
        self._file, self._start = file, file.tell()
        self._position = 0  # within the archive
        self._members: list[_Member] = []

    def add(self, name: str, data: memoryview) -> None:
        """Write a member, its data at a multiple of 64 bytes from the start of the archive."""
        member = _Member(name.encode("ascii"), crc32(data), data.nbytes, self._position)
        self._members.append(member)
        self._write(_local_header(member))
        self._write(data)

    def close(self) -> None:
        """Write the directory; without it, the archive is not complete."""
        start = self._position
        for member in self._members:
            self._write(_central_header(member))
        size = self._position - start
        count = len(self._members)
        if count > _MOST_MEMBERS or max(start, size) > _ZIP64_ABOVE:
            end64 = self._position
            version = _VERSION_ZIP64
            self._write(
                _END64.pack(b"PK\6\6", 44, version, version, 0, 0, count, count, size, start)
            )
            self._write(_END64_LOCATOR.pack(b"PK\6\7", 0, end64, 1))
        shown = min(count, _MOST_MEMBERS)
        self._write(_END.pack(b"PK\5\6", 0, 0, shown, shown, _shown(size), _shown(start), 0))

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._position += len(data)


def _local_header(member: _Member) -> bytes:
    sizes = b""
    if member.num_bytes > _ZIP64_ABOVE:
        sizes = struct.pack("<HHQQ", _ZIP64_FIELD, 16, member.num_bytes, member.num_bytes)
    unpadded = member.offset + _LOCAL.size + len(member.name) + len(sizes) + 4
    padding = -unpadded % _ALIGNMENT
    extra = sizes + struct.pack("<HH", _PADDING_FIELD, padding) + b"Z" * padding
    shown = _shown(member.num_bytes)
    version = _VERSION_ZIP64 if sizes else _VERSION
    header = _LOCAL.pack(
        *(b"PK\3\4", version, 0, 0, _TIME, _DATE, member.checksum, shown, shown),
        *(len(member.name), len(extra)),
    )
    return header + member.name + extra


def _central_header(member: _Member) -> bytes:
    large = [size for size in (member.num_bytes,) * 2 if size > _ZIP64_ABOVE]
    large += [member.offset] if member.offset > _ZIP64_ABOVE else []
    extra = struct.pack("<HH", _ZIP64_FIELD, 8 * len(large)) if large else b""
    extra += b"".join(struct.pack("<Q", value) for value in large)
    shown = _shown(member.num_bytes)
    version = _VERSION_ZIP64 if large else _VERSION
    header = _CENTRAL.pack(
        *(b"PK\1\2", version, version, 0, 0, _TIME, _DATE, member.checksum, shown, shown),
        *(len(member.name), len(extra), 0, 0, 0, 0, _shown(member.offset)),
    )
    return header + member.name + extra


def _shown(value: int) -> int:
    """What a 32-bit field holds."""
    return value if value <= _ZIP64_ABOVE else _IN_ZIP64_FIELD
