"""Damaged and hostile JSON files give one clear error."""

from pathlib import Path

import pytest

from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf_config import read_json


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
        read_json(path)
    assert str(path) in str(error.value)


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"x": [1]}')
    assert read_json(tmp_path / "config.json") == {"x": [1]}
