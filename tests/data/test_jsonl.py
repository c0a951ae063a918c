"""Reading JSON lines: compression, places of errors, going on in the middle."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dongwu_jax.data import jsonl
from dongwu_jax.errors import UserError

_LINES = [b'{"text": "%d"}' % i for i in range(1000)]
_DATA = b"\n".join(_LINES)


def _frames(data: bytes) -> bytes:
    """Zstandard frames, the first without its size."""
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    return compressor.compress(data[:5000]) + zstandard.compress(data[5000:])


def _members(data: bytes) -> bytes:
    return gzip.compress(data[:5000]) + gzip.compress(data[5000:])


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", _members), (".zst", _frames)])
def test_compressed_files_give_the_same_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pack
) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 700)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(_DATA))
    numbered = list(enumerate(_LINES, start=1))
    assert [line[1:] for line in jsonl.read_lines([path])] == numbered
    blocks = list(jsonl.read_blocks(path))
    assert blocks[-1].file_bytes_read == path.stat().st_size
    middle = blocks[len(blocks) // 2]
    rest = jsonl.read_blocks(path, middle.end, middle.first_line + middle.lines)
    assert [line for block in rest for line in jsonl.block_lines(block)] == numbered[
        middle.first_line + middle.lines - 1 :
    ]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", _members), (".zst", _frames)])
@pytest.mark.parametrize("damage", [lambda d: d[:-20], lambda d: d[:100] + b"\0" * 9 + d[109:]])
def test_a_damaged_compressed_file_is_an_error(tmp_path: Path, suffix: str, pack, damage) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(damage(pack(_DATA)))
    with pytest.raises(UserError, match=r"a\.jsonl\.\w+: cannot be read to its end"):
        list(jsonl.read_lines([path]))


@settings(
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.binary(max_size=30)), st.integers(1, 20), st.booleans())
def test_lines_are_those_between_line_feeds(
    tmp_path: Path, lines: list[bytes], block_bytes: int, ends: bool
) -> None:
    data = b"\n".join(lines) + b"\n" * ends
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    expected = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_BLOCK_BYTES", block_bytes)
        found = {number: line for _, number, line in jsonl.read_lines([path])}
    assert found == {i: line for i, line in enumerate(expected, 1) if line.strip()}


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n\r\n')
    (line,) = jsonl.read_lines([tmp_path / "a.jsonl"])
    assert jsonl.parse_texts(line[2], ["text"], *line[:2]) == [["x"]]


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(jsonl, "_MAX_LINE_BYTES", 1000)
    (tmp_path / "a.json").write_bytes(b"x\n" + b"[" * 2000)
    with pytest.raises(UserError, match=r"a\.json:2: is longer than"):
        list(jsonl.read_lines([tmp_path / "a.json"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
        (b'{"text": "x"', "is not JSON"),
        (b'{"text": "x"} {}', "is not JSON: Extra data"),
        (b'["text"]', "must be a JSON object, not a list"),
        (b'{"content": "x"}', "has no key 'text' .its keys: content"),
        (b'{"text": 5}', "must be a string or a list of strings, not 5"),
        (b'{"text": null}', "not null"),
        (b'{"text": ["a", 5]}', "a list with other things"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": ' + b"[" * 100_000, "nested too deeply|is not JSON"),
    ],
)
def test_bad_lines_name_their_place(line: bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"a\.jsonl:7: .*{message}"):
        jsonl.parse_texts(line, ["text"], Path("a.jsonl"), 7)


@pytest.mark.parametrize(
    "line", ['{"text": "é\\u00e9\\ud83d\\ude00", "x": NaN}', '{"text": "é", "n": 1e999}']
)
def test_lenient_json_is_read_as_python_does(line: str) -> None:
    texts = jsonl.parse_texts(line.encode(), ["text"], Path("a.jsonl"), 1)
    assert texts == [[json.loads(line)["text"]]]


def test_inputs_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.gz"):
        (tmp_path / name).touch()
    names = [path.name for path in jsonl.expand_inputs([str(tmp_path / "*.json*")])]
    assert names == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]
    with pytest.raises(UserError, match="named twice"):
        jsonl.expand_inputs([str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")])
    with pytest.raises(UserError, match="no file matches"):
        jsonl.expand_inputs([str(tmp_path / "*.txt")])
    with pytest.raises(UserError, match="is a folder"):
        jsonl.expand_inputs([str(tmp_path)])
