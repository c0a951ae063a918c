"""The command from outside: killed and started again, spread over engines, fed with bad input."""

import fcntl
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from json_lines import write_texts
from processes import all_gone, wait_until
from synthesis_runs import FAKE_VLLM, ROOT, Job, document, files, records, save_model

_DOCUMENTS = 95


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model, as far as its tokenizer goes."""
    return save_model(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="module")
def job(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Nineteen parts of five documents, some of them too short, two samples of each."""
    texts = [document(n) if n % 11 else "short" for n in range(_DOCUMENTS)]
    corpus = write_texts(tmp_path_factory.mktemp("in") / "corpus.jsonl", texts)
    return Job(model, corpus, rounds=2)


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job makes when nobody disturbs it."""
    output = tmp_path_factory.mktemp("whole") / "out"
    job.must_run(output)
    return output


def _engines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _no_engine_runs(log: Path) -> bool:
    return all_gone(engine["child"] for engine in _engines(log))


def _parts(output: Path) -> int:
    return len(list(output.glob("part-*")))


def test_samples_say_where_they_come_from(job: Job, whole: Path) -> None:
    texts = [json.loads(line)["text"] for line in job.corpus.read_text().splitlines()]
    made = records(whole)
    usable = [n for n, text in enumerate(texts) if text != "short"]
    assert [sample["source"] for sample in made] == [
        f"corpus.jsonl:{n + 1}" for n in usable for _ in range(2)
    ]
    for sample in made:
        text = texts[int(sample["source"].rpartition(":")[2]) - 1]
        assert text.startswith(sample["prefix"])
        assert sample["text"] == sample["prefix"] + sample["completion"]
        assert 8 <= sample["prefix_tokens"] <= 32
        assert sample["completion_tokens"] == len(sample["completion"].split())
        ended = "length" if sample["completion_tokens"] == 16 else "stop"
        assert sample["finish_reason"] == ended
        assert sample["model"] == str(job.model)
        assert sample["sampling"]["temperature"] == 0.9
        assert isinstance(sample["seed"], int)
    assert len({sample["id"] for sample in made}) == len(made)
    assert len({sample["completion"] for sample in made}) > len(made) * 0.9
    rejected = records(whole, "rejected")
    assert [entry["source"] for entry in rejected] == [
        f"corpus.jsonl:{n + 1}" for n in range(_DOCUMENTS) if n not in usable
    ]
    assert {entry["kind"] for entry in rejected} == {"short"}


@pytest.mark.parametrize("chance", [1, 2, 3])
def test_killed_at_any_moment_nothing_is_lost_or_repeated(
    monkeypatch: pytest.MonkeyPatch, job: Job, whole: Path, tmp_path: Path, chance: int
) -> None:
    moments = random.Random(chance)
    output, log, answers = tmp_path / "out", tmp_path / "log", tmp_path / "answers"
    monkeypatch.setenv("FAKE_VLLM_LOG", str(log))
    monkeypatch.setenv("FAKE_VLLM_ANSWERS", str(answers))
    answers.touch()
    engines = {"data_parallel": chance} if chance > 1 else {}
    for _ in range(4):
        known, moment = len(_engines(log)), answers.stat().st_size + moments.randrange(13)
        # Soon after the moment engines wait: however late the kill comes, much is to be done then.
        slow = {"FAKE_VLLM_STEP_SECONDS": "0.02", "FAKE_VLLM_ENOUGH": str(moment + 4)}
        process = job.start(output, slow, **engines)
        wait_until(
            lambda known=known, moment=moment: (
                len(_engines(log)) > known and answers.stat().st_size >= moment
            ),
            process,
            pause=0.01,
        )
        assert process.poll() is None
        process.kill()
        process.communicate()
        wait_until(lambda: _no_engine_runs(log))  # no GPU stays taken
        for path in output.glob("part-*.jsonl"):
            assert path.read_bytes() == (whole / path.name).read_bytes()
    job.must_run(output, **engines)
    assert files(output) == files(whole)
    # At a kill no more is lost than what the engine gives back in a step.
    assert len(answers.read_text()) <= len(records(whole)) + 4 * 8 * chance


def test_a_polite_stop(job: Job, whole: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    slow = {"FAKE_VLLM_STEP_SECONDS": "0.05", "FAKE_VLLM_LOG": str(log)}
    for number in (signal.SIGTERM, signal.SIGINT):
        before = _parts(output)
        process = job.start(output, slow)
        wait_until(lambda before=before: _parts(output) >= before + 2, process, pause=0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert f"stopped by {number.name}" in said
        assert "The same command goes on" in said
        assert "Traceback" not in said
        assert _no_engine_runs(log)
        assert not list(output.glob(".part-*.jsonl.*"))
    said = job.run(output).stderr
    assert "of 19 parts are there already" in said
    assert files(output) == files(whole)
    events = [json.loads(line)["event"] for line in (output / "runs.jsonl").open()]
    assert events == [
        *("started", "stopped by SIGTERM", "started", "stopped by SIGINT", "started", "complete")
    ]
    assert "nothing is missing" in job.run(output).stderr


@pytest.mark.parametrize(
    ("visible", "tensor_parallel", "expected"),
    [(None, 1, {"0", "1"}), ("4,5,6,7", 2, {"4,5", "6,7"})],
)
def test_two_engines_make_what_one_makes(
    monkeypatch: pytest.MonkeyPatch,
    job: Job,
    whole: Path,
    tmp_path: Path,
    visible: str | None,
    tensor_parallel: int,
    expected: set[str],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
    flags = {"data_parallel": 2, "tensor_parallel": tensor_parallel}
    job.must_run(tmp_path / "out", **flags)
    assert files(tmp_path / "out") == files(whole)
    assert {engine["devices"] for engine in _engines(tmp_path / "log")} == expected
    assert _no_engine_runs(tmp_path / "log")


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch, job: Job, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    message = job.must_fail(tmp_path / "out", data_parallel=2, tensor_parallel=2)
    assert "needs 4 GPUs, CUDA_VISIBLE_DEVICES=0,1,2 names 3" in message


def test_hosts_share_a_folder(job: Job, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    processes = [job.start(output, rank=rank, world=3) for rank in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert files(output) == files(whole)
    assert "--rank 3: must be less than" in job.must_fail(output, rank=3, world=3)


def test_a_folder_is_one_process_s(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with (output / ".lock-0").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process works on it as rank 0" in job.must_fail(output)
    job.must_run(output)


def test_bad_records_are_set_aside(model: Path, tmp_path: Path) -> None:
    good = document(1)
    lines = [
        json.dumps({"text": good}),
        "{broken",
        json.dumps({"content": good}),
        json.dumps({"text": None}),
        json.dumps({"text": "UNSPEAKABLE " + good}),
        json.dumps({"text": "UNFINISHED " + good}),
        json.dumps({"text": "NOTHING " + good}),
        "",
        json.dumps({"text": "tiny"}),
        json.dumps({"text": [good, good]}),
    ]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(lines))
    output = tmp_path / "out"
    told = Job(model, corpus, records_per_part=3, rounds=1, prefix_tokens="16:32").must_run(output)
    assert "2 samples, 7 rejected (input 3, generator 2, " in told
    assert [sample["source"] for sample in records(output)] == ["corpus.jsonl:1", "corpus.jsonl:10"]
    found = [
        (each["source"][13:], each["kind"], each["reason"]) for each in records(output, "rej*")
    ]
    assert [entry[:2] for entry in found] == [
        *(("2", "input"), ("3", "input"), ("4", "input"), ("5", "generator"), ("6", "generator")),
        *(("7", "empty"), ("9", "short")),
    ]
    assert "is not JSON" in found[0][2]
    assert found[3][2] == "the prompt is too long"
    assert found[4][2] == "vLLM ended it with 'abort'"


def test_a_generator_that_fails_always_ends_the_job(model: Path, tmp_path: Path) -> None:
    texts = [document(1)] * 20 + ["UNSPEAKABLE " + document(n) for n in range(200)]
    broken = Job(model, write_texts(tmp_path / "corpus.jsonl", texts), records_per_part=10)
    message = broken.must_fail(tmp_path / "out", prefix_tokens="16:32")
    assert "failed on 50 prompts in a row, the last time: the prompt is too long" in message
    assert not list((tmp_path / "out").glob("part-*"))  # to be tried again


def test_an_engine_that_dies(model: Path, tmp_path: Path) -> None:
    texts = [document(n) for n in range(40)] + ["FATAL " + document(41)]
    fatal = Job(model, write_texts(tmp_path / "corpus.jsonl", texts))
    message = fatal.must_fail(tmp_path / "out", data_parallel=2)
    assert "vLLM's engine stopped: out of memory" in message
    assert "goes on with what is missing" in message


def test_an_engine_that_is_killed(job: Job, whole: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    process = job.start(output, {"FAKE_VLLM_STEP_SECONDS": "0.05", "FAKE_VLLM_LOG": str(log)})
    wait_until(lambda: _parts(output), process, pause=0.01)
    (engine,) = _engines(log)
    parent = Path(f"/proc/{engine['child']}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(parent), signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "ended with exit code -9" in said
    wait_until(lambda: _no_engine_runs(log))
    job.must_run(output)
    assert files(output) == files(whole)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"temperature": 0.7}, "recipe.sampling.temperature is 0.9 there and 0.7 now"),
        ({"seed": 5}, "recipe.seed is 0 there and 5 now"),
        ({"prefix_tokens": "8:33"}, "recipe.prefix_tokens is [8, 32] there and [8, 33] now"),
        ({"template": "summary"}, 'recipe.template is "continue" there and "summary" now'),
        ({"limit": 3}, "recipe.limit is null there and 3 now"),
        ({"records_per_part": 20}, "recipe.documents_per_part is 5 there and 10 now"),
    ],
)
def test_other_settings_are_refused(job: Job, whole: Path, flags: dict, expected: str) -> None:
    before = files(whole)
    message = job.must_fail(whole, **flags)
    assert expected in message
    assert "or name a new folder with --output" in message
    assert files(whole) == before


def test_other_input_and_other_models_are_refused(job: Job, whole: Path, tmp_path: Path) -> None:
    changed = tmp_path / job.corpus.name
    changed.write_text(job.corpus.read_text().replace("Bank", "Book"))
    assert "inputs is " in job.must_fail(whole, input=changed)
    other = save_model(tmp_path / "teacher")
    (other / "config.json").write_text("{}")
    message = job.must_fail(whole, model=other)
    assert "model.name is " in message
    assert "model.files.config.json is null there" in message
    assert "--output" in job.must_fail(tmp_path)  # a folder with other files


def test_rewriting(job: Job, tmp_path: Path) -> None:
    rewriting = {"template": "question_answer", "prefix_tokens": "100:120", "limit": 9}
    job.must_run(tmp_path / "out", **rewriting)
    for sample in records(tmp_path / "out"):
        assert sample["template"] == "question_answer"
        assert sample["text"] == f"{sample['prefix']}\n\n{sample['completion'].strip()}"


def test_a_base_model_cannot_rewrite(job: Job, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", chat_template=None)
    message = job.must_fail(tmp_path / "out", model=base, template="summary")
    assert "the model has no chat template and cannot rewrite" in message


def test_a_dry_run_writes_nothing(job: Job, tmp_path: Path) -> None:
    told = job.must_run(tmp_path / "out", dry_run=20, data_parallel=2)
    assert "20 samples, 1 rejected" in told or "18 samples, " in told
    assert "tokens/s" in told
    assert "B tokens a day" in told
    assert f"all {2 * _DOCUMENTS} prompts ({_DOCUMENTS} documents x 2)" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"engine_option": "max_model_length=5"}, "unexpected keyword argument"),
        ({"engine_option": "max_num_seqs=0"}, "max_num_seqs must be positive"),
        ({"engine_option": "tensor_parallel_size=2"}, "say it with --tensor-parallel"),
        ({"model": "Qwen/Qwen3-8B"}, "is no folder; download it first"),
        ({"server": "http://localhost:1", "tensor_parallel": 2}, "--tensor-parallel is for"),
        ({"server": "localhost:1"}, "write it as http://host:8000"),
        ({"server": "http://localhost:1"}, "does not answer as an OpenAI server does"),
        ({"input": "nowhere.jsonl"}, "no such file"),
    ],
)
def test_mistakes_are_explained(job: Job, tmp_path: Path, flags: dict, expected: str) -> None:
    assert expected in job.must_fail(tmp_path / "out", **flags)


def test_options_reach_the_engine(job: Job, tmp_path: Path) -> None:
    options = ["max_model_len=30", "max_num_seqs=2"]
    told = job.must_run(tmp_path / "out", engine_option=options, limit=8)
    assert "(generator " in told
    started = json.loads((tmp_path / "out" / "runs.jsonl").read_text().splitlines()[0])
    assert started["means"]["options"] == {"max_model_len": 30, "max_num_seqs": 2}


def test_vllm_is_named_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, job: Job, tmp_path: Path
) -> None:
    message = job.run(tmp_path / "out", {"PYTHONPATH": str(ROOT)}).stderr
    if "vLLM is not installed" not in message:
        pytest.skip("vLLM is installed here")
    assert message.count("error: ") == 1
    assert "pip install 'dongwu_jax[vllm]'" in message
    assert "Traceback" not in message


def test_nothing_here_needs_jax() -> None:
    """vLLM's environment need not have it."""
    import subprocess

    script = (
        "import sys, vllm; sys.modules['jax'] = None\n"
        "import dongwu_jax.distill.synthesis.job, dongwu_jax.distill.synthesis.vllm_engine\n"
        "import dongwu_jax.distill.synthesis.server"
    )
    paths = f"{FAKE_VLLM}{os.pathsep}{ROOT}"
    subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": paths}, check=True
    )
