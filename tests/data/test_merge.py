"""Merging against the vectors of Megatron's merge tool, and its guards."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from written_datasets import write_dataset

from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.data.merge import merge_datasets
from dongwu_jax.errors import UserError

_TOOL = Path(__file__).parents[2] / "tools" / "merge_datasets.py"
_A = [[11, 12, 13, 0], [21, 22, 0], [], [31, 32, 33, 34, 35, 0], [41, 0]]
_B = [[51, 52, 0], [61, 0]]
_MERGED = (
    "bc25c56ba5736e2d16aee04e70de3fc06f787383a0e5cd2a905cdb14f3370984",
    "1b6c5d56a0bc1a667a6dd58503f89d0001b9d18dea36b10f8b749b439e007c90",
)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder with the datasets a and b."""
    write_dataset(tmp_path / "parts" / "a", _A)
    write_dataset(tmp_path / "parts" / "b", _B)
    return tmp_path / "parts"


def _sha256(prefix: Path) -> tuple[str, ...]:
    files = [Path(f"{prefix}.bin"), Path(f"{prefix}.idx")]
    return tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def test_command_writes_the_bytes_of_megatron(parts: Path) -> None:
    (parts / "README.md").write_text("notes")
    (parts / "cache").mkdir()
    command = [sys.executable, _TOOL, "--input", "parts", "--output-prefix", "merged"]
    environment = {**os.environ, "PYTHONPATH": str(_TOOL.parents[1])}
    done = subprocess.run(
        command, cwd=parts.parent, env=environment, check=True, capture_output=True, text=True
    )
    assert _sha256(parts.parent / "merged") == _MERGED
    assert "README.md" in done.stderr
    assert "7 documents" in done.stdout


def test_order_is_lexicographic(tmp_path: Path) -> None:
    for i, name in enumerate(["p_2", "p_10", "p"]):
        write_dataset(tmp_path / "in" / name, [[i]])
    merge_datasets(tmp_path / "in", tmp_path / "out")
    merged = IndexedDataset(tmp_path / "out")
    assert [merged.get(i).tolist() for i in range(3)] == [[2], [1], [0]]


def test_modes_are_merged(parts: Path) -> None:
    for name, modes in (("a", [0, 1, 0, 1]), ("b", [1, 1])):
        with (parts / f"{name}.idx").open("ab") as file:
            file.write(bytes(modes))
    with pytest.raises(UserError, match="multimodal"):
        merge_datasets(parts, parts.parent / "merged")
    merge_datasets(parts, parts.parent / "merged", multimodal=True)
    modes = IndexedDataset(parts.parent / "merged").sequence_modes
    assert modes is not None
    assert modes.tolist() == [0, 1, 0, 1, 1, 1]


def test_output_in_the_input_folder(parts: Path) -> None:
    with pytest.raises(UserError, match="lies in the input folder"):
        merge_datasets(parts, parts / "merged")


def test_output_that_exists(parts: Path) -> None:
    merge_datasets(parts, parts.parent / "merged")
    with pytest.raises(UserError, match="exists already"):
        merge_datasets(parts, parts.parent / "merged")
    merge_datasets(parts, parts.parent / "merged", overwrite=True)
    assert _sha256(parts.parent / "merged") == _MERGED


@pytest.mark.parametrize("lone", ["b.bin", "b.idx"])
def test_a_file_without_partner(parts: Path, lone: str) -> None:
    (parts / lone).unlink()
    with pytest.raises(UserError, match="its partner b"):
        merge_datasets(parts, parts.parent / "merged")


def test_different_token_types_leave_nothing(parts: Path) -> None:
    write_dataset(parts / "c", _B, "<i4")
    with pytest.raises(UserError, match=r"c\.idx: holds int32 tokens"):
        merge_datasets(parts, parts.parent / "merged")
    assert [path.name for path in parts.parent.iterdir()] == ["parts"]


def test_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        merge_datasets(tmp_path / "missing", tmp_path / "merged")
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="holds no"):
        merge_datasets(tmp_path / "in", tmp_path / "merged")
