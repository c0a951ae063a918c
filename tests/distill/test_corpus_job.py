"""Building a corpus: what holds for any input, and the way from a synthesis."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import synthesis_runs
from command_lines import TOOLS
from corpus_samples import chinese
from hypothesis import given, settings
from hypothesis import strategies as st
from json_lines import read_lines, write_lines, write_texts

from dongwu_jax.distill.corpus.filters import Limits
from dongwu_jax.distill.corpus.job import Building, build_corpus
from dongwu_jax.distill.corpus.judging import Criteria
from dongwu_jax.distill.corpus.originals import Originals
from dongwu_jax.distill.corpus.records import SynthesisInput, parse_sample
from dongwu_jax.errors import UserError

pytest.importorskip("datasketch")

_TEXTS = st.lists(
    st.fixed_dictionaries(
        {
            "completion": st.text("ab。\n字中", max_size=40),
            "prefix": st.text("ab字", max_size=20),
            "finish_reason": st.sampled_from(["stop", "length", "error"]),
        }
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=30, deadline=None)
@given(_TEXTS)
def test_nothing_is_lost_and_what_is_kept_stays(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = write_lines(folder / "in.jsonl", records)
    criteria = Criteria(Limits(min_new_tokens=5))
    first = build_corpus(Building(SynthesisInput((source,)), folder / "one", criteria))
    dropped = sum(tally.records for tally in first.dropped.values())
    assert first.kept.records + dropped == first.read.records == len(records)
    text = folder / "one/text.jsonl"
    assert len(read_lines(text)) == first.kept.records
    if not first.kept.records:
        return  # no input for a second time
    second = build_corpus(Building(SynthesisInput((text,)), folder / "two", criteria))
    assert second.kept.records == second.read.records == first.kept.records
    assert (folder / "two/text.jsonl").read_bytes() == text.read_bytes()


def test_documents_are_found_in_any_order_and_in_compressed_files(tmp_path: Path) -> None:
    texts = [f"{number} " + chinese(number, 3000) for number in range(400)]  # blocks of 1 MiB
    plain = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    content = b"\xef\xbb\xbf" + plain.read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    originals = Originals([plain, tmp_path / "b.jsonl.gz"], "text")
    order = [0, 1, 2, 399, 0, 250, 140, 139, 141, 399]
    for name in ("a.jsonl", "b.jsonl.gz"):
        for number in order:
            record = {"text": "x", "completion": "x", "prefix": f"{number} "}
            line = json.dumps(record | {"source": f"{name}:{number + 1}"}).encode()
            rest = originals.continuation(parse_sample(line, Path("p"), 1))
            assert f"{number} {rest}" == texts[number]
    line = json.dumps({"text": "x", "source": "a.jsonl:401"}).encode()
    with pytest.raises(UserError, match="has no line 401"):
        originals.continuation(parse_sample(line, Path("p"), 1))
    with pytest.raises(UserError, match="source=None: must be file name and line"):
        originals.continuation(parse_sample(b'{"text": "x"}', Path("p"), 1))


def test_it_reads_what_the_synthesis_writes(tmp_path: Path) -> None:
    model = synthesis_runs.save_model(tmp_path / "teacher")
    texts = [synthesis_runs.document(number) for number in range(30)]
    corpus = write_texts(tmp_path / "corpus.jsonl", texts)
    synthesis_runs.Job(model, corpus, rounds=2).must_run(tmp_path / "synthetic")
    command = [sys.executable, TOOLS / "build_corpus.py", "--input", tmp_path / "synthetic"]
    command += ["--output", tmp_path / "out", "--original", corpus, "--control"]
    command += ["--min-new-tokens", "1"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    made = synthesis_runs.records(tmp_path / "synthetic")
    assert report["read"]["records"] == len(made) > 0
    control = read_lines(tmp_path / "out/control.jsonl")
    assert len(control) == len(read_lines(tmp_path / "out/text.jsonl"))
    for record in control:
        assert texts[int(record["source"].split(":")[1]) - 1].startswith(record["text"])
