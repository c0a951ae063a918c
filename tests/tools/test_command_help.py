"""Every command teaches: an example, and a sentence for every flag."""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from command_lines import TOOLS, exit_code, load_tool

from dongwu_jax import exit_codes, generate, quickstart, train
from dongwu_jax.plan import __main__ as plan
from dongwu_jax.report import __main__ as report

COMMANDS = {
    "train": train.main,
    "generate": generate.main,
    "plan": plan.main,
    "report": report.main,
    "quickstart": quickstart.main,
    **{
        name: load_tool(name).main
        for name in (
            "preprocess_data",
            "preprocess_chat",
            "merge_datasets",
            "train_tokenizer",
            "gather_corpus",
            "convert",
            "evaluate",
            "prune",
            "cache_teacher",
            "synthesize",
            "build_corpus",
            "check_export",
        )
    },
}
CALLS = [[name] for name in COMMANDS]
EVALUATIONS = ("perplexity", "passkey", "harness", "compare")
CALLS += [["evaluate", name] for name in EVALUATIONS] + [["convert", "verify"]]


def _parser(
    monkeypatch: pytest.MonkeyPatch, main: Callable, arguments: list[str]
) -> argparse.ArgumentParser:
    """The parser that answers `--help`."""
    seen: list[argparse.ArgumentParser] = []
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_help", lambda self: seen.append(self))
        assert exit_code(main, *arguments, "--help") == 0
    return seen[0]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_help_explains_every_flag_and_gives_an_example(
    monkeypatch: pytest.MonkeyPatch, call: list[str]
) -> None:
    parser = _parser(monkeypatch, COMMANDS[call[0]], call[1:])
    unexplained = [
        action.option_strings or action.dest
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert unexplained == []
    assert "example" in parser.format_help().lower()


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_the_example_only_uses_flags_that_exist(
    monkeypatch: pytest.MonkeyPatch, call: list[str]
) -> None:
    parser = _parser(monkeypatch, COMMANDS[call[0]], call[1:])
    text = f"{parser.description}\n{parser.epilog}"
    example = (
        re.split(r"[Ee]xamples?[\w, ]*:", text)[1].replace("\\\n", " ").strip().split("\n\n")[0]
    )
    flags = {word for word in shlex.split(example) if re.fullmatch(r"--[a-z-]+", word)}
    parsers = [parser]
    if call == ["evaluate"]:  # its examples are of its commands
        parsers = [_parser(monkeypatch, COMMANDS["evaluate"], [name]) for name in EVALUATIONS]
    known = {
        option
        for parser in parsers
        for action in parser._actions
        for option in action.option_strings
    }
    assert flags
    assert flags <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(COMMANDS[name], "--no-such-flag", "1") == 2
    assert "error: " in capsys.readouterr().err


def _run(output: IO, *command: str, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TOOLS.parent,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered: str) -> None:
    """As in `--help-config | grep -q`: the exit code is that of a process ended by SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as nobody:
        ended = _run(nobody, "-m", "dongwu_jax.train", "--help-config", unbuffered=unbuffered)
    assert ended.stderr == ""
    assert ended.returncode == exit_codes.BY_SIGNAL + signal.SIGPIPE


def test_output_that_cannot_be_written_is_one_error() -> None:
    with Path("/dev/full").open("w") as full:
        ended = _run(full, "tools/convert.py", "--help")
    assert ended.stderr == "error: the output cannot be written: No space left on device\n"
    assert ended.returncode == exit_codes.FAILED
