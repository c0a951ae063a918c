"""Samples of datasets and blends against what Megatron read, and what goes wrong clearly."""

from pathlib import Path

import numpy as np
import pytest

from dongwu_jax.config.sections import DataConfig
from dongwu_jax.data.datasets import Datasets, build_dataset, build_datasets
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
from dongwu_jax.errors import UserError


def write_dataset(prefix: Path, lengths: list[int], first_token: int = 0) -> Path:
    """A dataset whose tokens count up from `first_token`, so that each token is unique."""
    with IndexedDatasetWriter(prefix, np.dtype("<i4")) as writer:
        for length in lengths:
            writer.add_document(np.arange(first_token, first_token + length), [length])
            first_token += length
    return prefix


def make_config(tmp_path: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate(
        {"sequence_length": 8, "index_cache": tmp_path / "cache", **settings}
    )


def test_every_sample_of_a_megatron_run(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "megatron/train"
    golden = np.load(folder / "batches.npz")
    config = make_config(
        tmp_path,
        blend=[
            {"prefix": folder / "data/en_text_document", "weight": 0.7},
            {"prefix": folder / "data/zh_text_document", "weight": 0.3},
        ],
        split="900,50,50",
        order="megatron",
        sequence_length=128,
    )
    steps, batch, interval, evaluation_batches = 20, 8, 10, 2
    datasets = build_datasets(
        config,
        train_samples=steps * batch,
        validation_samples=(steps // interval + 1) * evaluation_batches * batch,
        test_samples=evaluation_batches * batch,
        vocab_size=1100,
    )
    train = np.stack([datasets.train[i] for i in range(steps * batch)])
    np.testing.assert_array_equal(train.reshape(steps, batch, 129), golden["train"])
    for source, name in ((datasets.validation, "valid"), (datasets.test, "test")):
        assert source is not None
        samples = np.stack([source[i] for i in range(len(golden[name]))])
        np.testing.assert_array_equal(samples, golden[name])
        assert samples.dtype == np.int32


@pytest.mark.parametrize(
    ("case", "blend", "sizes"),
    [
        ("s02_single_3epochs_separate", ["mixed"], (15000, 700, 20)),
        ("s05_blend_30_70", [("en", 0.3), ("zh", 0.7)], (8000, 500, 20)),
    ],
)
def test_items_that_megatron_read(
    shared_data: Path,
    tmp_path: Path,
    case: str,
    blend: list[str | tuple[str, float]],
    sizes: tuple[int, int, int],
) -> None:
    golden = np.load(shared_data / f"megatron/sampling/{case}.npz")
    folder = shared_data / "megatron/data/out"
    entries = [
        {"prefix": folder / f"u16_w1_{entry[0]}_text_document", "weight": entry[1]}
        if isinstance(entry, tuple)
        else folder / f"u16_w1_{entry}_text_document"
        for entry in blend
    ]
    config = make_config(
        tmp_path, blend=entries, split="949,50,1", order="megatron", sequence_length=128
    )
    datasets = build_datasets(config, *sizes, vocab_size=32000)
    for name, source in (
        ("train", datasets.train),
        ("valid", datasets.validation),
        ("test", datasets.test),
    ):
        assert source is not None
        for i, tokens in enumerate(golden[f"{name}/item_tokens"]):
            np.testing.assert_array_equal(source[i][:-1], tokens)
            np.testing.assert_array_equal(source[i][1:], golden[f"{name}/item_labels"][i])


def all_samples(datasets: Datasets, count: int) -> np.ndarray:
    return np.stack([datasets.train[i] for i in range(count)])


@pytest.mark.parametrize("weights", [None, (0.6, 0.4)])
def test_extending_an_epoch_run_changes_nothing(
    tmp_path: Path, weights: tuple[float, float] | None
) -> None:
    a = write_dataset(tmp_path / "a", [5, 30, 1, 12, 9])
    b = write_dataset(tmp_path / "b", [40, 3], first_token=1000)
    blend: object = a
    if weights:
        blend = [{"prefix": a, "weight": weights[0]}, {"prefix": b, "weight": weights[1]}]
    config = make_config(tmp_path, blend=blend, split="1,0,0")
    short = build_datasets(config, 50, 0, vocab_size=2000)
    long = build_datasets(config, 300, 0, vocab_size=2000)
    np.testing.assert_array_equal(all_samples(short, 50), all_samples(long, 50))
    assert short.validation is None
    assert short.test is None


def test_separate_validation_data(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", [100])
    validation = write_dataset(tmp_path / "validation", [100], first_token=500)
    for order in ("epoch", "megatron"):
        config = make_config(tmp_path, blend=train, validation_blend=validation, order=order)
        datasets = build_datasets(config, 12, 12, vocab_size=600)
        assert datasets.validation is not None
        assert {t for i in range(12) for t in datasets.train[i].tolist()} <= set(range(100))
        assert all(t >= 500 for i in range(12) for t in datasets.validation[i].tolist())
        with pytest.raises(UserError, match="no test samples"):
            build_dataset(config, "test", 1, vocab_size=600)


def test_unweighted_megatron_blend_reads_each_dataset_once(tmp_path: Path) -> None:
    a = write_dataset(tmp_path / "a", [17])  # two samples of eight
    b = write_dataset(tmp_path / "b", [41], first_token=100)  # five
    config = make_config(tmp_path, blend=[a, b], split="1", order="megatron")
    train = build_dataset(config, "train", 100, vocab_size=200)
    firsts = sorted(train[i][0] for i in range(len(train)))
    assert firsts == [0, 8, 100, 108, 116, 124, 132]
    assert len(build_dataset(config, "train", 4, vocab_size=200)) == 4


def test_single_weighted_dataset_is_built_as_a_blend(tmp_path: Path) -> None:
    """Megatron's `1.0 prefix` builds 0.5% more, which may need another epoch than `prefix`."""
    prefix = write_dataset(tmp_path / "a", [9] * 10)  # 11 samples an epoch, 22 in two
    bare = make_config(tmp_path, blend=prefix, split="1", order="megatron")
    weighted = make_config(
        tmp_path, blend=[{"prefix": prefix, "weight": 1.0}], split="1", order="megatron"
    )
    one_epoch = build_dataset(bare, "train", 11, vocab_size=100)
    two_epochs = build_dataset(weighted, "train", 11, vocab_size=100)
    assert (len(one_epoch), len(two_epochs)) == (11, 11)
    same = build_dataset(bare, "train", 12, vocab_size=100)
    assert len(same) == 22
    assert all(np.array_equal(two_epochs[i], same[i]) for i in range(11))


@pytest.mark.parametrize("order", ["epoch", "megatron"])
def test_index_outside(tmp_path: Path, order: str) -> None:
    a = write_dataset(tmp_path / "a", [50])
    blend = [{"prefix": a, "weight": 1.0}] * 2
    train = build_dataset(make_config(tmp_path, blend=blend, order=order), "train", 9, 100)
    for index in (-1, len(train)):
        with pytest.raises(IndexError, match=f"sample {index} of"):
            train[index]


def test_token_outside_the_vocabulary(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", [10, 10, 10])
    train = build_dataset(make_config(tmp_path, blend=prefix, split="1"), "train", 30, 25)
    message = r"a: sequence 2 holds token 2[5-9], but model\.vocab_size=25"
    with pytest.raises(UserError, match=message):
        [train[i] for i in range(30)]
    with IndexedDatasetWriter(tmp_path / "negative", np.dtype("<i4")) as writer:
        writer.add_document(np.array([-3] * 9), [9])
    config = make_config(tmp_path, blend=tmp_path / "negative", split="1")
    with pytest.raises(UserError, match="sequence 0 holds token -3"):
        build_dataset(config, "train", 1, 25)[0]


@pytest.mark.parametrize(
    ("settings", "samples", "message"),
    [
        ({"blend": []}, (1, 0, 0), r"data\.blend is empty"),
        ({"validation_blend": []}, (1, 1, 0), r"data\.validation_blend is empty"),
        ({"split": "1,0,0"}, (1, 1, 0), r"no share for validation"),
        ({"split": "98,1,1"}, (1, 0, 1), r"test split is empty.* 4 sequences"),
        ({"split": "98,1,1", "order": "megatron"}, (1, 1, 0), "validation split is empty"),
        ({"sequence_length": 100}, (1, 0, 0), "has 40 tokens, fewer than one sample"),
        ({"order": "megatron", "seed": 2**32}, (1, 0, 0), r"data\.seed=4294967296"),
        ({"blend": ["nowhere"]}, (1, 0, 0), "nowhere"),
    ],
)
def test_errors(
    tmp_path: Path, settings: dict[str, object], samples: tuple[int, int, int], message: str
) -> None:
    prefix = write_dataset(tmp_path / "a", [10, 10, 10, 10])
    config = make_config(tmp_path, **{"blend": [prefix], "split": "1,0,0", **settings})
    with pytest.raises(UserError, match=message):
        build_datasets(config, *samples, vocab_size=100)


def test_split_without_tokens(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", [0, 0, 10, 10])
    config = make_config(tmp_path, blend=prefix, split="1,1", order="megatron")
    with pytest.raises(UserError, match="has no tokens"):
        build_dataset(config, "train", 1, vocab_size=100)


def test_dataset_without_sequences(tmp_path: Path) -> None:
    empty = write_dataset(tmp_path / "empty", [])
    for order in ("epoch", "megatron"):
        with pytest.raises(UserError, match="holds no sequences"):
            build_dataset(make_config(tmp_path, blend=empty, order=order), "train", 1, 100)


def test_cache_lies_beside_the_data_unless_told(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", [100])
    config = make_config(tmp_path, blend=prefix, order="megatron", split="1", index_cache=None)
    build_dataset(config, "train", 5, vocab_size=100)
    assert len(list((tmp_path / "cache" / "dongwu_jax").glob("megatron-*.npy"))) == 3


def test_changed_data_are_not_read_with_old_indexes(tmp_path: Path) -> None:
    config = make_config(tmp_path, blend=tmp_path / "a", order="megatron", split="1")
    for lengths in ([100], [50, 50], [30, 90]):
        for file in tmp_path.glob("a.*"):
            file.unlink()
        write_dataset(tmp_path / "a", lengths)
        train = build_dataset(config, "train", 5, vocab_size=200)
        fresh = config.model_copy(update={"index_cache": tmp_path / f"cache{lengths[0]}"})
        expected = build_dataset(fresh, "train", 5, vocab_size=200)
        assert all(np.array_equal(train[i], expected[i]) for i in range(5))
