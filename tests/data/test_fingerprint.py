"""What decides the data order is recorded, and differences are named."""

import json
from pathlib import Path

import pytest
from written_datasets import write_dataset

from dongwu_jax.config.sections import DataConfig
from dongwu_jax.data.fingerprint import compare_fingerprints, content_hash, fingerprint
from dongwu_jax.errors import UserError


def make_config(tmp_path: Path, **settings: object) -> DataConfig:
    blend = [{"prefix": tmp_path / "a", "weight": 3}, {"prefix": tmp_path / "b", "weight": 1}]
    return DataConfig.model_validate({"blend": blend, **settings})


@pytest.fixture(autouse=True)
def _datasets(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [[1, 2, 3]])
    write_dataset(tmp_path / "b", [[4, 5]])


def test_same_run_has_no_differences(tmp_path: Path) -> None:
    first = fingerprint(make_config(tmp_path), 100)
    saved = json.loads(json.dumps(first))
    assert compare_fingerprints(saved, fingerprint(make_config(tmp_path), 900)) == []
    other_scale = [{"prefix": tmp_path / "a", "weight": 6}, {"prefix": tmp_path / "b", "weight": 2}]
    assert (
        compare_fingerprints(saved, fingerprint(make_config(tmp_path, blend=other_scale), 1)) == []
    )


def test_length_matters_in_megatron_order_only(tmp_path: Path) -> None:
    config = make_config(tmp_path, order="megatron")
    (difference,) = compare_fingerprints(fingerprint(config, 100), fingerprint(config, 900))
    assert "100 training samples and is for 900" in difference


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 7}, "data.seed was 1234 and is 7"),
        ({"order": "megatron"}, "data.order was 'epoch' and is 'megatron'"),
        ({"sequence_length": 64}, "data.sequence_length was 4096 and is 64"),
        ({"split": "9,1"}, "data.split was '99,1,0' and is '9,1'"),
        ({"validation_blend": ["c"]}, "data.split was '99,1,0' and is 'whole'"),
    ],
)
def test_changed_settings(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    saved = fingerprint(make_config(tmp_path), 100)
    assert compare_fingerprints(saved, fingerprint(make_config(tmp_path, **settings), 100)) == [
        message
    ]


def test_changed_data(tmp_path: Path) -> None:
    saved = fingerprint(make_config(tmp_path), 100)
    for file in tmp_path.glob("b.*"):
        file.unlink()
    write_dataset(tmp_path / "b", [[4, 6]])
    (difference,) = compare_fingerprints(saved, fingerprint(make_config(tmp_path), 100))
    assert difference.startswith("data.blend, b: content was ")
    one = fingerprint(make_config(tmp_path, blend=tmp_path / "a"), 100)
    assert compare_fingerprints(saved, one) == ["data.blend was [a, b] and is [a]"]


def test_weights(tmp_path: Path) -> None:
    saved = fingerprint(make_config(tmp_path), 100)
    equal = fingerprint(make_config(tmp_path, blend=[tmp_path / "a", tmp_path / "b"]), 100)
    assert compare_fingerprints(saved, equal) == [
        "data.blend, a: weight was 0.75 and is 0.5",
        "data.blend, b: weight was 0.25 and is 0.5",
    ]


def test_content_hash_of_large_files(tmp_path: Path) -> None:
    tokens = list(range(65000)) * 5
    before = content_hash(write_dataset(tmp_path / "large", [tokens]))
    assert before == content_hash(write_dataset(tmp_path / "same", [tokens]))
    assert before != content_hash(write_dataset(tmp_path / "longer", [[*tokens, 1]]))
    assert before != content_hash(write_dataset(tmp_path / "end", [[*tokens[:-1], 1]]))
    assert before != content_hash(write_dataset(tmp_path / "start", [[1, *tokens[1:]]]))
    with pytest.raises(UserError, match=r"missing\.idx"):
        content_hash(tmp_path / "missing")
