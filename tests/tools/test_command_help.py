"""Every command teaches: an example, and a sentence for every flag."""

import argparse
import re
import shlex
from collections.abc import Callable

import pytest
from command_lines import exit_code, load_tool

from dongwu_jax import generate, train
from dongwu_jax.plan import __main__ as plan

COMMANDS = {
    "train": train.main,
    "generate": generate.main,
    "plan": plan.main,
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
        )
    },
}
CALLS = [[name] for name in COMMANDS]
EVALUATIONS = ("perplexity", "passkey", "harness", "compare")
CALLS += [["evaluate", name] for name in EVALUATIONS]


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
    example = re.split(r"[Ee]xamples?:", text)[1].replace("\\\n", " ").strip().split("\n\n")[0]
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
