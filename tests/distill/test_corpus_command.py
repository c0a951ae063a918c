"""tools/build_corpus.py as a user runs it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import exit_code, failure, load_tool
from corpus_samples import chinese
from json_lines import read_lines, write_lines

from dongwu_jax.output_files import write_json_file
from dongwu_jax.sealed_json import sealed

pytest.importorskip("datasketch")

main = load_tool("build_corpus").main
REASONS = (
    "bad_line",
    "unfinished",
    "short",
    "mojibake",
    "boilerplate",
    "language",
    "repeated_passages",
    "compressible",
    "repeated_lines",
    "copied",
    "contaminated",
    "in_original",
    "duplicate",
    "near_duplicate",
)


QUESTION = chinese(77, 30)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [{"body": chinese(seed, 400)} for seed in range(40)]
    return write_lines(tmp_path_factory.mktemp("documents") / "docs.jsonl", records)


@pytest.fixture(scope="module")
def synthetic(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty samples in four parts, of which ten have a fault each."""
    records = []
    for number, document in enumerate(read_lines(documents)):
        record = {
            "id": f"id{number}",
            "prefix": document["body"][:50],
            "completion": chinese(1000 + number, 205),
            "source": f"docs.jsonl:{number + 1}",
            "completion_tokens": 205,
            "finish_reason": "length" if number % 2 else "stop",
            "template": "continue",
            "model": "teacher",
        }
        records.append(record | {"text": record["prefix"] + record["completion"]})
    good = records[0]["completion"]
    faults: dict[int, dict[str, Any]] = {
        3: {"finish_reason": "error"},
        4: {"completion_tokens": 12},
        5: {"completion": good[:100] + "\ufffd。"},
        6: {"completion": good[:100] + "很抱歉，我无法继续。"},
        7: {"completion": "An answer in another language. " * 2},
        8: {"completion": good[:50] * 4, "finish_reason": "stop"},
        9: {"completion": read_lines(documents)[9]["body"][50:250]},
        11: {"completion": good[:60] + QUESTION + good[60:120]},
        12: {"completion": f" {good} "},
        20: {"completion": good[:180] + "换几个字。" + good[185:], "finish_reason": "stop"},
    }
    for number, fields in faults.items():
        records[number] |= fields
    folder = tmp_path_factory.mktemp("synthetic")
    for part in (2, 0, 3, 1):  # in whatever order they are made
        write_lines(folder / f"part-{part:05}.jsonl", records[part * 10 : part * 10 + 10])
    write_json_file(folder / "parts.json", sealed({"parts": [[0], [1], [2], [3]]}))
    (folder / "manifest.json").write_text('{"recipe": {"text_key": "body"}}')
    (folder / "runs.jsonl").write_text("{}\n")
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("sets") / "exam.jsonl", [{"question": QUESTION}])


@pytest.fixture
def flags(synthetic: Path, documents: Path, questions: Path, tmp_path: Path) -> list[object]:
    flags = ["--input", synthetic, "--output", tmp_path / "corpus", "--original", documents]
    return [*flags, "--decontaminate", questions, "--control"]


def test_every_fault_is_found_and_reported(
    flags: list[object], synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, *flags) == 0
    report = json.loads((tmp_path / "corpus/report.json").read_text())
    assert tuple(report["dropped"]) == REASONS
    dropped = {
        reason: [example["id"] for example in found["examples"]]
        for reason, found in report["dropped"].items()
        if found["records"]
    }
    assert dropped == {
        "unfinished": ["id3"],
        "short": ["id4"],
        "mojibake": ["id5"],
        "boilerplate": ["id6"],
        "language": ["id7"],
        "repeated_passages": ["id8"],
        "copied": ["id9"],
        "contaminated": ["id11"],
        "duplicate": ["id12"],
        "near_duplicate": ["id20"],
    }
    assert report["dropped"]["contaminated"]["examples"][0]["detail"] == "100% of exam.jsonl:1"
    assert report["dropped"]["duplicate"]["examples"][0]["detail"] == "is id0"
    assert report["questions"]["found"] == ["exam.jsonl:1"]
    assert report["read"]["records"] == 40
    assert report["kept"]["records"] == 30
    out = capsys.readouterr().out
    assert "near_duplicate" in out
    assert "75.0%" in out

    kept = read_lines(tmp_path / "corpus/text.jsonl")
    given = {r["id"]: r for part in sorted(synthetic.glob("part-*")) for r in read_lines(part)}
    gone = {name for names in dropped.values() for name in names}
    assert [record["id"] for record in kept] == [
        f"id{n}" for n in range(40) if f"id{n}" not in gone
    ]
    for record in kept:
        before = given[record["id"]]
        cut = 200 if before["finish_reason"] == "length" else 205
        assert record["completion"] == before["completion"][:cut]
        assert record["completion_tokens"] == cut
        assert record["text"] == record["prefix"] + record["completion"]
        assert (record["model"], record["source"]) == ("teacher", before["source"])
    assert report["kept"]["characters"] == sum(len(record["text"]) for record in kept)
    assert report["kept"]["trimmed"] == sum(int(r["id"][2:]) % 2 for r in kept)


def test_the_control_is_how_the_documents_go_on(
    flags: list[object], documents: Path, tmp_path: Path
) -> None:
    assert exit_code(main, *flags) == 0
    kept = read_lines(tmp_path / "corpus/text.jsonl")
    control = read_lines(tmp_path / "corpus/control.jsonl")
    bodies = [record["body"] for record in read_lines(documents)]
    assert [record["id"] for record in control] == [record["id"] for record in kept]
    for true, made in zip(control, kept, strict=True):
        body = bodies[int(made["id"][2:])]
        assert body.startswith(true["text"])
        assert true["text"].startswith(made["prefix"])
        assert abs(len(true["text"]) - len(made["text"])) <= 20
        assert true["text"].endswith("。")


def test_the_same_bytes_again_with_any_number_of_workers(
    flags: list[object], synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dongwu_jax.distill.corpus.job._WORTH_A_PROCESS", 1)
    written = []
    for run, workers in (("one", 1), ("two", 3)):
        flags[3] = tmp_path / run
        assert exit_code(main, *flags, "--workers", workers) == 0
        written.append({path.name: path.read_bytes() for path in (tmp_path / run).iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"text.jsonl", "control.jsonl", "report.json"}


def test_the_result_passes_again(flags: list[object], tmp_path: Path) -> None:
    assert exit_code(main, *flags) == 0
    first = (tmp_path / "corpus/text.jsonl").read_bytes()
    # The manifest, which says body, is not beside the result.
    again = ["--input", tmp_path / "corpus/text.jsonl", "--output", tmp_path / "again"]
    assert exit_code(main, *again, *flags[6:8]) == 0
    assert (tmp_path / "again/text.jsonl").read_bytes() == first


def test_texts_like_original_documents_go(
    documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = [record["body"] for record in read_lines(documents)]
    originals = write_lines(tmp_path / "docs.jsonl", [{"text": body} for body in bodies])
    texts = [bodies[2][:390] + "改了结尾十个字的文。", bodies[3], chinese(999, 400)]
    records = [{"text": text, "source": "docs.jsonl:1"} for text in texts]
    flags: list[object] = ["--input", write_lines(tmp_path / "in.jsonl", records)]
    flags += ["--output", tmp_path / "out"]
    assert exit_code(main, *flags, "--original", originals, "--original-duplicates") == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    found = report["dropped"]["in_original"]["examples"]
    assert sorted(example["detail"].split()[-1] for example in found) == [
        "docs.jsonl:3",
        "docs.jsonl:4",
    ]
    assert report["kept"]["records"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--original": None}, "--control: needs --original"),
        ({"--original": "other.jsonl"}, "its document is in docs.jsonl, and --original has only"),
        ({"--original": "b/docs.jsonl"}, "docs.jsonl:1: does not begin with the prefix"),
        ({"--original": "c/docs.jsonl"}, "docs.jsonl: has no line 2, where sample id1 is from"),
        ({"--original": "d/docs.jsonl"}, "docs.jsonl:1: has no key 'body'"),
        ({"--input": "nothing"}, "nothing: no such file"),
        ({"--input": "b"}, "b: holds no part-*.jsonl"),
        ({"--decontaminate": "nothing"}, "there is no such file or folder"),
        ({"--output": "other.jsonl"}, "other.jsonl/text.jsonl: cannot be written"),
        ({"--output": "full"}, "text.jsonl: exists; name another --output, or give --overwrite"),
        ({"--phrases": "nothing"}, "nothing: cannot be read"),
    ],
)
def test_mistakes_are_explained(
    flags: list[object],
    documents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in "bcd":
        (tmp_path / folder).mkdir()
    bodies = read_lines(documents)
    write_lines(tmp_path / "other.jsonl", bodies)
    write_lines(tmp_path / "b/docs.jsonl", bodies[::-1])
    write_lines(tmp_path / "c/docs.jsonl", bodies[:1])
    write_lines(tmp_path / "d/docs.jsonl", [{"text": "x"}])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/text.jsonl").touch()
    for flag, value in change.items():
        if flag not in flags:
            flags += [flag, value]
        elif value is None:
            at = flags.index(flag)
            del flags[at : at + 2]
        else:
            flags[flags.index(flag) + 1] = value
    assert message in failure(capsys, main, *flags)
    assert not list(tmp_path.glob("**/.text.jsonl*"))


def test_bad_lines_stop_or_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": chinese(n, 100)} for n in range(3)])
    source.write_bytes(source.read_bytes() + b'{"text": \n\n' + b'{"other": 1}\n')
    flags = ["--input", source, "--output", tmp_path / "out"]
    message = failure(capsys, main, *flags)
    assert f"{source}:4: is not JSON" in message
    assert "--bad-lines skip" in message
    assert list((tmp_path / "out").iterdir()) == []
    assert exit_code(main, *flags, "--bad-lines", "skip") == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["dropped"]["bad_line"]["records"] == 2
    assert report["kept"]["records"] == 3
    assert report["read"]["records"] == 5


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_input_is_no_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """Nothing is written, and what an earlier run wrote stays."""
    empty, output = tmp_path / "empty.jsonl", tmp_path / "out"
    empty.write_text(content)
    flags = ("--input", empty, "--output", output)
    assert f"{empty}: holds no sample" in failure(capsys, main, *flags)
    assert list(output.iterdir()) == []
    some = write_lines(tmp_path / "some.jsonl", [{"text": chinese(1, 100)}])
    assert exit_code(main, "--input", some, "--output", output) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    failure(capsys, main, *flags, "--overwrite")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_an_incomplete_synthesis_is_noticed(
    flags: list[object], synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some").mkdir()
    for path in [*synthetic.glob("*.json"), *sorted(synthetic.glob("part-*"))[:3]]:
        (tmp_path / "some" / path.name).write_bytes(path.read_bytes())
    assert exit_code(main, "--input", tmp_path / "some", *flags[2:]) == 0
    assert "1 parts are missing" in capsys.readouterr().err
    (tmp_path / "some/manifest.json").write_text("[]")
    message = failure(capsys, main, "--input", tmp_path / "some", *flags[2:], "--overwrite")
    assert "has no recipe.text_key" in message


def test_an_overwritten_control_does_not_stay(flags: list[object], tmp_path: Path) -> None:
    assert exit_code(main, *flags) == 0
    assert exit_code(main, *flags[:-1], "--overwrite") == 0
    assert not (tmp_path / "corpus/control.jsonl").exists()


def test_phrases_of_ones_own(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": chinese(1, 100) + "本行不承担责任"}])
    (tmp_path / "phrases.txt").write_text("\n不承担责任\n", encoding="utf-8")
    flags = ["--input", source, "--output", tmp_path / "out"]
    assert exit_code(main, *flags, "--phrases", tmp_path / "phrases.txt") == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["dropped"]["boilerplate"]["examples"][0]["detail"] == "不承担责任"


def test_without_datasketch_one_error_names_the_package(
    flags: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert "pip install 'dongwu_jax[distill]'" in failure(capsys, main, *flags)
    assert exit_code(main, *flags, "--near-duplicates", 1) == 0
