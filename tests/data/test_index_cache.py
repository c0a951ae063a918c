"""The index cache: hits, damage, and folders that cannot be written to."""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dongwu_jax.data.index_cache import Arrays, IndexCache

KEY = {"kind": "test", "seed": 1}


class Builder:
    """Counts how often it builds."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return {
            "rows": np.arange(12, dtype=np.int32).reshape(6, 2),
            "shuffle": np.arange(5, dtype=np.uint32),
            "nothing": np.zeros(0, dtype=np.int64),
        }


def check(arrays: Arrays) -> None:
    for name, expected in Builder()().items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


def test_builds_once_for_each_key(tmp_path: Path) -> None:
    build = Builder()
    for _ in range(3):
        check(IndexCache(tmp_path / "new" / "folder").load_or_build(KEY, build))
    assert build.calls == 1
    check(IndexCache(tmp_path / "new" / "folder").load_or_build({**KEY, "seed": 2}, build))
    assert build.calls == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_arrays_are_mapped(tmp_path: Path) -> None:
    cache = IndexCache(tmp_path)
    for _ in range(2):
        array = cache.load_or_build(KEY, Builder())["rows"]
        assert not array.flags.writeable
        assert isinstance(array.base, np.memmap)


@settings(max_examples=60, deadline=None)
@given(
    file_number=st.integers(0, 3),
    place=st.integers(0, 10**6),
    bit=st.integers(0, 7),
    cut=st.booleans(),
)
def test_any_damaged_byte_is_noticed_or_harmless(
    file_number: int, place: int, bit: int, cut: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = IndexCache(Path(folder))
        cache.load_or_build(KEY, Builder())
        file = sorted(Path(folder).iterdir())[file_number]
        content = bytearray(file.read_bytes())
        place %= len(content)
        content[place] ^= 1 << bit
        file.unlink()  # never write into a mapped file
        file.write_bytes(content[:place] if cut else content)
        check(cache.load_or_build(KEY, Builder()))
        check(cache.load_or_build(KEY, Builder()))


def test_damage_is_reported_and_mended(tmp_path: Path) -> None:
    cache, build = IndexCache(tmp_path), Builder()
    cache.load_or_build(KEY, build)
    (rows,) = tmp_path.glob("*rows.npy")
    content = rows.read_bytes()
    rows.unlink()
    rows.write_bytes(content[:-4] + b"\xff\xff\xff\xff")
    with pytest.warns(UserWarning, match="damaged; building it again"):
        check(cache.load_or_build(KEY, build))
    check(cache.load_or_build(KEY, build))
    assert build.calls == 2


def test_unfinished_entry_is_built_again(tmp_path: Path) -> None:
    cache, build = IndexCache(tmp_path), Builder()
    cache.load_or_build(KEY, build)
    (manifest,) = tmp_path.glob("*.json")
    manifest.unlink()
    check(cache.load_or_build(KEY, build))
    assert build.calls == 2


def test_unwritable_folder_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"data\.index_cache"):
        check(IndexCache(tmp_path / "file" / "cache").load_or_build(KEY, Builder()))


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(UserWarning, match="No space left"):
        check(IndexCache(tmp_path).load_or_build(KEY, Builder()))
    assert not list(tmp_path.iterdir())
