"""Damaged and hostile JSON files give one clear error."""

from pathlib import Path

import pytest

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object, read_small_file, read_text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"x":' * 200_000, "nested too deeply"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "a number that is too long"),
        ('{"x": 1', "is not JSON"),
        ("[1]", "must hold a JSON object, not a list"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_json_object(path)
    assert str(path) in str(error.value)


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"x": [1]}')
    assert read_json_object(tmp_path / "config.json") == {"x": [1]}


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    with pytest.raises(UserError, match="config.json: has 1099511627776 bytes, and at most"):
        read_json_object(path)
    path.write_bytes(b"12345")
    assert read_small_file(path, largest=5) == b"12345"
    with pytest.raises(UserError, match="at most 4"):
        read_small_file(path, largest=4)


def test_text_must_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a\r\n证\r\n".encode())
    assert read_text(path) == path.read_text(encoding="utf-8") == "a\n证\n"
    path.write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"a\.txt: is not UTF-8 at byte 2"):
        read_text(path)


def test_a_message_of_pages_is_cut_in_its_middle() -> None:
    short, long = "config.json: x" * 10, f"config.json: x={'y' * 20_000}; write another"
    assert str(UserError(short)) == short
    cut = str(UserError(long))
    assert cut.startswith("config.json: x=yyy")
    assert cut.endswith("yyy; write another")
    assert len(cut) < 4000
