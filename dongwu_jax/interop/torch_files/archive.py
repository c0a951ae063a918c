"""The zip archive that torch.save writes, possibly embedded in a larger file."""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dongwu_jax.errors import UserError

_LOCAL_HEADER_BYTES = 30
LARGEST_PICKLE = 1 << 30
"""Bytes; those of real checkpoints have a few MB."""
_OLD_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_ENCRYPTED = 1  # bit of the flags of a member


@dataclass(frozen=True)
class Member:
    """The bytes of one member, as they lie in the file."""

    path: Path
    name: str
    position: int  # in the file, bytes
    num_bytes: int
    crc32: int  # 0: torch was told to write none

    def require_intact(self, crc32: int) -> None:
        """Compare the checksum of what was read.

        Raises:
            UserError: it differs from the one that was written.
        """
        if self.crc32 and crc32 != self.crc32:
            raise UserError(
                f"{self.path}: {self.name} has the checksum {crc32:08x}, {self.crc32:08x} was "
                "written; the file is damaged: copy it again"
            )


class TorchArchive:
    """Where the members of an archive lie; no file stays open.

    Attributes:
        path: the file.
        length: bytes of the file that belong to the archive.
        pickle: content of its data.pkl.
    """

    def __init__(self, path: Path, offset: int = 0, length: int | None = None):
        """Read the directory and the pickle.

        Raises:
            UserError: the file is missing, damaged, or of a kind that torch no longer writes.
        """
        self.path = path
        self._offset = offset
        try:
            with path.open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                self.length = size - offset if length is None else length
                if offset < 0 or self.length < 0 or offset + self.length > size:
                    raise UserError(
                        f"{path}: has {size} bytes, but {self.length} bytes at {offset} are "
                        "expected in it; it is truncated or of another checkpoint: copy it again"
                    )
                self._members = self._read_directory(file)
                self._folder = self._find_folder()
                self._require_little_endian(file)
                self.pickle = self._read(file, "data.pkl")
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error

    def find(self, name: str) -> Member | None:
        """A member such as "data/0"; None when absent.

        Raises:
            UserError: the member is compressed, encrypted or damaged.
        """
        info = self._members.get(f"{self._folder}/{name}")
        if info is None:
            return None
        with self.path.open("rb") as file:
            return self._locate(file, info)

    def _read_directory(self, file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
        file.seek(self._offset)
        if file.read(len(_OLD_TORCH_MAGIC)) == _OLD_TORCH_MAGIC:
            raise UserError(
                f"{self.path}: is in the format of torch before 1.6; load it once with a current "
                "torch and save it again with torch.save"
            )
        try:
            with zipfile.ZipFile(_Window(file, self._offset, self.length)) as archive:
                infos = archive.infolist()
        except Exception as error:  # zipfile raises many kinds of errors for damaged archives
            raise UserError(
                f"{self.path}: is not a torch file, or a truncated one ({error}); copy it again"
            ) from error
        members = {info.filename: info for info in infos}
        if len(members) != len(infos):
            raise UserError(f"{self.path}: has two members of one name; save the file again")
        return members

    def _find_folder(self) -> str:
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(
                f"{self.path}: holds {len(pickles)} members */data.pkl, a torch file holds one; "
                "give a file written by torch.save"
            )
        return pickles[0].removesuffix("/data.pkl")

    def _require_little_endian(self, file: BinaryIO) -> None:
        if f"{self._folder}/byteorder" not in self._members:  # torch before 2.1
            return
        byteorder = self._read(file, "byteorder")
        if byteorder != b"little":
            raise UserError(
                f"{self.path}: byteorder is {byteorder[:16]!r}, only little is supported; save it "
                "again on a little-endian machine"
            )

    def _locate(self, file: BinaryIO, info: zipfile.ZipInfo) -> Member:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise UserError(
                f"{self.path}: {info.filename} is compressed or encrypted, torch never does that; "
                "save the file again with torch.save"
            )
        file.seek(self._offset + max(info.header_offset, 0))
        header = file.read(_LOCAL_HEADER_BYTES)
        start = info.header_offset + _LOCAL_HEADER_BYTES
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        fits = info.header_offset >= 0 and start + info.file_size <= self.length
        if header[:4] != b"PK\3\4" or not fits or info.file_size != info.compress_size:
            raise UserError(
                f"{self.path}: {info.filename} is damaged or reaches beyond the end; copy the file "
                "again"
            )
        return Member(self.path, info.filename, self._offset + start, info.file_size, info.CRC)

    def _read(self, file: BinaryIO, name: str) -> bytes:
        member = self._locate(file, self._members[f"{self._folder}/{name}"])
        if member.num_bytes > LARGEST_PICKLE:
            raise UserError(
                f"{self.path}: {name} has {member.num_bytes} bytes, at most {LARGEST_PICKLE} are "
                "accepted; is this a checkpoint?"
            )
        file.seek(member.position)
        data = file.read(member.num_bytes)
        member.require_intact(zlib.crc32(data))
        return data


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int):
        self._file, self._offset, self._length = file, offset, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("a position before its start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        room = max(self._length - self._position, 0)
        size = room if size < 0 else min(size, room)
        if size > LARGEST_PICKLE:
            raise ValueError(f"a directory of {size} bytes")
        self._file.seek(self._offset + self._position)
        data = self._file.read(size)
        self._position += len(data)
        return data
