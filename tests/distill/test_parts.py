"""The input is divided into parts that can be read alone."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dongwu_jax.data import jsonl
from dongwu_jax.distill.synthesis.parts import PartFolder, documents_of, plan_parts, source_names
from dongwu_jax.errors import UserError

_MARK = b"\xef\xbb\xbf"


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(
        st.lists(st.sampled_from([b"", b"  ", b"a", b"bcd", b"x" * 50]), max_size=8),
        min_size=1,
        max_size=3,
    ),
    size=st.integers(1, 5),
    limit=st.none() | st.integers(1, 6),
    mark=st.booleans(),
    last_end=st.booleans(),
    block=st.sampled_from([1, 7, 1000]),
)
def test_parts_hold_every_line_once(
    tmp_path_factory: pytest.TempPathFactory,
    contents: list[list[bytes]],
    size: int,
    limit: int | None,
    mark: bool,
    last_end: bool,
    block: int,
) -> None:
    folder = tmp_path_factory.mktemp("input")
    inputs = []
    for number, lines in enumerate(contents):
        data = (_MARK if mark else b"") + b"\n".join(lines) + (b"\n" if last_end else b"")
        path = folder / (f"{number}.jsonl.gz" if number % 2 else f"{number}.jsonl")
        path.write_bytes(gzip.compress(data) if number % 2 else data)
        inputs.append(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_BLOCK_BYTES", block)
        expected = list(jsonl.read_lines(inputs))[:limit]
        if not expected:
            with pytest.raises(UserError, match="no documents"):
                plan_parts(inputs, size, limit)
            return
        parts = plan_parts(inputs, size, limit)
        assert [part.number for part in parts] == list(range(len(parts)))
        assert all(part.documents == size for part in parts[:-1])
        assert [line for part in parts for line in documents_of(part, inputs)] == expected


def test_a_part_exists_only_when_it_is_complete(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path)

    def samples():  # type: ignore[no-untyped-def]
        yield {"id": "a"}
        assert not folder.samples(3).exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write(3, samples(), [{"source": "x:1"}])
    assert not folder.samples(3).exists()
    folder.remove_leftovers([3])
    assert [path.name for path in tmp_path.iterdir()] == ["rejected-00003.jsonl"]
    # Done again, and this time nothing is set aside: the old list must not speak of it.
    folder.write(3, [{"id": "a"}], [])
    assert [path.name for path in tmp_path.iterdir()] == ["part-00003.jsonl"]


def test_samples_of_a_part_that_was_begun(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path)
    found, file = folder.begun(3)
    assert found == []
    file.write(b'{"id":"a"}\n{"id":"b"}\n{"id":')
    file.close()
    folder.remove_leftovers([3])
    found, file = folder.begun(3)
    assert found == [{"id": "a"}, {"id": "b"}]
    file.write(b'{"id":"c"}\n')
    file.close()
    found, file = folder.begun(3)
    file.close()
    assert [record["id"] for record in found] == ["a", "b", "c"]
    folder.write(3, found, [])
    assert [path.name for path in tmp_path.iterdir()] == ["part-00003.jsonl"]
    folder.begun(3)[1].close()  # killed before it was removed
    folder.remove_leftovers([3])
    assert [path.name for path in tmp_path.iterdir()] == ["part-00003.jsonl"]


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    (tmp_path / ".part-00001.jsonl.77").write_text("theirs")
    (tmp_path / ".part-00002.jsonl.77").write_text("left behind")
    PartFolder(tmp_path).remove_leftovers([0, 2])
    assert [path.name for path in tmp_path.iterdir()] == [".part-00001.jsonl.77"]


def test_names_of_sources() -> None:
    alone = source_names([Path("in/a.jsonl")])
    assert list(alone.values()) == ["a.jsonl"]
    several = source_names([Path("in/x/a.jsonl"), Path("in/y/a.jsonl")])
    assert list(several.values()) == ["x/a.jsonl", "y/a.jsonl"]
