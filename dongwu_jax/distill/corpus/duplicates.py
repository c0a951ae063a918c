"""Exact and near duplicates. What is kept of a text are hashes: memory does not grow with texts.

Near duplicates are found by datasketch, which needs NumPy and SciPy only, both ours already;
datatrove's MinHash works on files of its own pipelines and brings a dozen packages.
"""

import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dongwu_jax.distill.corpus.text import normalized
from dongwu_jax.errors import UserError

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 5  # characters
# 20 bands of 6: of pairs at Jaccard 0.7, 92% are looked at, at 0.8 99.8%.
_BANDS, _ROWS = 20, 6
_HASHES = _BANDS * _ROWS


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of a text.

    Attributes:
        digest: of the normalised text.
        signature: its MinHash, uint32 [120]; None: not asked for, or the text is too short.
    """

    digest: bytes
    signature: np.ndarray | None


class Fingerprinter:
    """Makes fingerprints.

    Args:
        near: whether near duplicates are looked for.

    Raises:
        UserError: they are, and datasketch is not installed.
    """

    def __init__(self, near: bool) -> None:
        self._empty = _empty_minhash() if near else None

    def __call__(self, text: str) -> Fingerprint:
        """The fingerprint of a text."""
        text = normalized(text)
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if self._empty is None or len(text) < SHINGLE:
            return Fingerprint(digest, None)
        minhash = self._empty.copy()
        minhash.update_batch(shingle.encode() for shingle in shingles(text))
        return Fingerprint(digest, minhash.hashvalues)


class DuplicateIndex:
    """Finds texts that were added before.

    Args:
        similarity: least Jaccard similarity of near duplicates, as estimated; 1: none are.

    Raises:
        UserError: near duplicates are looked for, and datasketch is not installed.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._exact: dict[bytes, str] = {}
        self._names: list[str] = []
        self._signatures: list[np.ndarray] = []
        self._empty: MinHash | None = None
        if similarity < 1:
            self._empty = _empty_minhash()
            from datasketch import MinHashLSH

            self._near = MinHashLSH(
                num_perm=_HASHES, params=(_BANDS, _ROWS), hashfunc=_short_digest
            )

    def exact(self, text: Fingerprint) -> str | None:
        """The name of an equal text."""
        return self._exact.get(text.digest)

    def near(self, text: Fingerprint) -> tuple[str, float] | None:
        """Name and estimated similarity of the first text that is a near duplicate."""
        if self._empty is None or text.signature is None:
            return None
        for number in sorted(self._near.query(self._minhash(text.signature))):
            similarity = float(np.mean(self._signatures[number] == text.signature))
            if similarity >= self._similarity:
                return self._names[number], similarity
        return None

    def add(self, text: Fingerprint, name: str) -> None:
        """Remember a text."""
        self._exact[text.digest] = name
        if self._empty is None or text.signature is None:
            return
        minhash = self._minhash(text.signature)
        self._near.insert(len(self._names), minhash, check_duplication=False)
        self._names.append(name)
        self._signatures.append(text.signature)

    def _minhash(self, signature: np.ndarray) -> "MinHash":
        assert self._empty is not None
        minhash = self._empty.copy()
        minhash.hashvalues = signature
        return minhash


def shingles(text: str) -> set[str]:
    """The passages of five characters of a normalised text."""
    return {text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)}


def _empty_minhash() -> "MinHash":
    try:
        from datasketch import MinHash

        return MinHash(num_perm=_HASHES, hashfunc=zlib.crc32, scheme="affine32")
    except (ImportError, TypeError):  # before 2.0 it knew no schemes
        raise UserError(
            "near duplicates need datasketch 2.0 or later: pip install 'dongwu_jax[distill]', or "
            "--near-duplicates 1 to leave them in"
        ) from None


def _short_digest(band: bytes) -> bytes:
    return hashlib.blake2b(band, digest_size=8).digest()
