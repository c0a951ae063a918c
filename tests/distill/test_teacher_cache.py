"""A teacher's cache: what it holds, that a run learns from it as from the teacher, and damage."""

import shutil

import numpy as np
import pytest
from command_lines import exit_code, load_tool
from reference_models import our_logits, random_llama, save
from run_outcomes import metrics
from runs import run_config

from dongwu_jax.config import ModelConfig, dump_config
from dongwu_jax.data.datasets import build_dataset
from dongwu_jax.data.teacher_cache import IDS, LOG_PROBABILITIES, TeacherCache
from dongwu_jax.distill.teacher_cache_job import Caching, write_cache
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.teacher import resolve_teacher
from dongwu_jax.training.trainer import Trainer

VOCAB, STEPS, BATCH = 128, 3, 16


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    model = random_llama(vocab_size=VOCAB, hidden_size=48, num_attention_heads=4)
    folder = save(model, tmp_path_factory.mktemp("teacher"))
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(VOCAB)}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


def run_of(folder, **sections):
    training = {"duration": STEPS, "global_batch_size": BATCH, "micro_batch_size": 2}
    return run_config(folder, training=training, **sections)


def cache_of(folder, teacher, top_k, part=20, **sections):
    config = run_of(folder, **sections)
    write_cache(Caching(config, teacher, folder / "cache", top_k, part, "float32", 1))
    return folder / "cache"


def test_it_holds_the_likeliest_tokens_and_the_rest(teacher, tmp_path):
    cache = TeacherCache(cache_of(tmp_path, teacher, top_k=5))
    config = run_of(tmp_path)
    source = open_source(teacher)
    weights = load_parameters(source.read, source.config)
    dataset = build_dataset(config.data, "train", STEPS * BATCH, VOCAB)
    assert cache.header.samples == STEPS * BATCH
    assert cache.header.parts == 3  # of 20, 20 and 8
    for sample in (0, 19, 20, STEPS * BATCH - 1):
        logits = our_logits(source.config, weights, dataset[sample][None, :-1])[0].astype(float)
        log_probabilities = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        found = cache.read(sample)
        np.testing.assert_array_equal(found[IDS], np.argsort(-log_probabilities)[:, :5])
        top = np.take_along_axis(log_probabilities, found[IDS], axis=-1)
        tail = np.log(1 - np.exp(top).sum(-1, keepdims=True))
        expected = np.concatenate([top, tail], axis=-1)
        np.testing.assert_allclose(found[LOG_PROBABILITIES], expected, rtol=2e-3, atol=2e-3)


def test_all_tokens_in_a_cache_teach_what_the_teacher_does(teacher, tmp_path):
    cache = cache_of(tmp_path / "cached", teacher, top_k=VOCAB - 1)
    config = run_of(tmp_path / "cached", distillation={"cache": str(cache), "weight": 0.6})
    Trainer(config).run()
    online = run_of(tmp_path / "online", distillation={"teacher": str(teacher), "weight": 0.6})
    online, found = resolve_teacher(online)
    Trainer(online, teacher=found).run()
    for cached, live in zip(
        metrics(tmp_path / "cached"), metrics(tmp_path / "online"), strict=True
    ):
        for name in ("loss", "divergence", "language_model_loss", "gradient_norm"):
            assert cached[name] == pytest.approx(live[name], rel=4e-3), name


def test_a_stopped_writer_goes_on(teacher, tmp_path):
    whole = cache_of(tmp_path, teacher, top_k=4)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "teacher.json").rename(part / "teacher.incomplete.json")
    (part / "ids-00001.npy").unlink()
    truncate(part / "log_probabilities-00000.npy")  # by a full disk
    (part / "ids-00002.tmp").write_bytes(b"half")
    with pytest.raises(UserError, match="it is incomplete: run the same command again"):
        TeacherCache(part)
    config = run_of(tmp_path)
    write_cache(Caching(config, teacher, part, 4, 20, "float32", 1))
    for file in whole.iterdir():
        assert (part / file.name).read_bytes() == file.read_bytes()


def test_another_run_s_cache_is_refused(teacher, tmp_path):
    cache = cache_of(tmp_path, teacher, top_k=4)
    cached = {"distillation": {"cache": str(cache)}}
    with pytest.raises(UserError, match=r"data.seed was 1234 and is 7"):
        Trainer(run_of(tmp_path, data={"seed": 7}, **cached))
    longer = run_config(tmp_path, training={"duration": 4, "global_batch_size": BATCH}, **cached)
    with pytest.raises(UserError, match="it has 48 samples, the run needs 64"):
        Trainer(longer)
    assert not (tmp_path / "run" / "checkpoints").exists()  # refused before anything was begun


def test_a_begun_cache_takes_no_parts_of_another_kind(teacher, tmp_path):
    cache = cache_of(tmp_path, teacher, top_k=4)
    with pytest.raises(UserError, match="is a complete cache already"):
        write_cache(Caching(run_of(tmp_path), teacher, cache, 4, 20, "float32", 1))
    (cache / "teacher.json").rename(cache / "teacher.incomplete.json")
    with pytest.raises(UserError, match="was begun with top_k=4, now it is 5"):
        write_cache(Caching(run_of(tmp_path), teacher, cache, 5, 20, "float32", 1))
    with pytest.raises(UserError, match="was begun with dtype='float32', now it is 'bfloat16'"):
        write_cache(Caching(run_of(tmp_path), teacher, cache, 4, 20, "bfloat16", 1))
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    write_cache(Caching(run_of(tmp_path), other, cache, 4, 20, "float32", 1))  # the same, elsewhere
    (cache / "teacher.json").rename(cache / "teacher.incomplete.json")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match="was begun with teacher_content="):
        write_cache(Caching(run_of(tmp_path), other, cache, 4, 20, "float32", 1))


def test_longer_samples_than_the_teacher_is_meant_for_are_refused(teacher, tmp_path):
    longer = {"model": {"max_position_embeddings": 128}, "data": {"sequence_length": 128}}
    with pytest.raises(UserError, match="is meant for 64 tokens, data.sequence_length is 128"):
        cache_of(tmp_path, teacher, top_k=4, **longer)


def test_the_command_writes_what_a_run_reads(teacher, tmp_path, capsys):
    config = run_of(tmp_path)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    arguments = ["--config", tmp_path / "run.yaml", "--teacher", teacher, "--out", tmp_path / "c"]
    command = load_tool("cache_teacher").main
    assert exit_code(command, *map(str, arguments), "--top-k", "4", "data.seed=9") == 0
    assert "48 samples of 32 tokens" in capsys.readouterr().out
    cached = {"distillation": {"cache": str(tmp_path / "c")}, "data": {"seed": 9}}
    Trainer(run_of(tmp_path, **cached)).run(stop_after=1)


DAMAGE = {
    "short": lambda cache: truncate(cache / "ids-00000.npy"),
    "pickled": lambda cache: np.save(cache / "ids-00000.npy", [{}], allow_pickle=True),
    "missing": lambda cache: (cache / "log_probabilities-00001.npy").unlink(),
    "no_header": lambda cache: (cache / "teacher.json").write_text("[]"),
    "shape": lambda cache: np.save(cache / "ids-00002.npy", np.zeros((1, 2), np.uint16)),
}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind, teacher, tmp_path):
    cache = cache_of(tmp_path, teacher, top_k=4)
    DAMAGE[kind](cache)
    with pytest.raises(UserError, match=str(cache)):
        TeacherCache(cache)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", 60_000),
        ("ids", 0),
        ("log_probabilities", np.nan),
        ("log_probabilities", -np.inf),
        ("log_probabilities", 0),
    ],
)
def test_values_that_no_teacher_says_are_refused(name, value, teacher, tmp_path):
    cache = cache_of(tmp_path, teacher, top_k=4)
    values = np.load(cache / f"{name}-00000.npy")
    values[3] = value
    np.save(cache / f"{name}-00000.npy", values)
    found = TeacherCache(cache)
    found.read(2)
    with pytest.raises(UserError, match="the entries of sample 3 are damaged"):
        found.read(3)


@pytest.mark.parametrize("vocab", [64, 256])
def test_a_teacher_of_other_tokens_is_refused(vocab, teacher, tmp_path):
    config = run_of(tmp_path, distillation={"teacher": str(teacher)})
    other = ModelConfig(**config.model.model_dump() | {"vocab_size": vocab})
    with pytest.raises(UserError, match=f"vocabulary of 128 tokens, the model one of {vocab}"):
        resolve_teacher(config.model_copy(update={"model": other}))


def test_a_teacher_with_another_tokenizer_is_refused(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "other")
    content = (tmp_path / "other" / "tokenizer.json").read_text()
    swapped = content.replace('"w5":5', '"w5":6').replace('"w6":6', '"w6":5')
    swapped = swapped.replace('"w5": 5', '"w5": 6').replace('"w6": 6', '"w6": 5')
    assert swapped != content
    (tmp_path / "other" / "tokenizer.json").write_text(swapped)
    config = run_of(
        tmp_path,
        distillation={"teacher": str(tmp_path / "other")},
        data={"tokenizer": str(teacher / "tokenizer.json")},
    )
    with pytest.raises(UserError, match="are different tokenizers: id 5 is"):
        resolve_teacher(config)
