"""The page: whole, safe, small, and drawn by a real browser where there is one."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from json_lines import write_lines
from run_material import Clock, killed_twice

from dongwu_jax.errors import UserError
from dongwu_jax.output_files import write_json_file
from dongwu_jax.report.__main__ import main
from dongwu_jax.training.records.kernel_table import as_record, kernel_table

NASTY = "</script><script>alert(1)</script>"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
METRICS = {
    "gradient_norm": 0.5,
    "learning_rate": 1e-4,
    "tokens_per_second": 4096.0,
    "tflops_per_device": 400.0,
    "mfu": 0.4,
    "memory_gib": 61.0,
    "data_wait_share": 0.01,
}


def make_page(folder: Path, *options: str) -> str:
    assert main([str(folder), *options]) == 0
    return (folder / "report.html").read_text("utf-8")


def chart_data(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page).group(1)
    return json.loads(text)


def perplexity_record(lengths: tuple[int, ...]) -> dict:
    parts = [{"first": 1, "last": 63, "perplexity": 12.0}]
    parts.append({"first": 64, "last": 127, "perplexity": 9.0})
    return {
        "model": "export",
        "results": [
            {"protocol": "chunked", "length": length, "perplexity": 10.0, "by_position": parts}
            for length in lengths
        ],
    }


@pytest.fixture
def rich_run(tmp_path):
    """Everything that the page can show, with names that want to run."""
    clock = killed_twice(tmp_path / "run")
    for line in clock.lines:
        if "loss" in line:
            line |= METRICS
    clock.lines[49]["loss"] = 9.0
    first, *later = [event for event in clock.events if event["event"] == "start"]
    config = {
        "model": {"num_layers": 2, "hidden_size": 64},
        "data": {"sequence_length": 64, "blend": [{"prefix": NASTY.replace("/", ""), "weight": 1}]},
        "training": {"global_batch_size": 4},
        "optimizer": {"learning_rate": 1e-3, "note": NASTY},
    }
    for event in (first, *later):
        event |= {"config": config, "devices": {"kind": NASTY, "count": 8}, "parameters": 1e9}
    later[0]["config"] = config | {"optimizer": {"learning_rate": 2e-3, "note": NASTY}}
    for step, spent in ((20, 1.0), (40, 1.5)):
        clock.event("step_times", step=step, seconds={"a": 1.0, NASTY: spent, "b": 1.0})
    clock.event(NASTY, step=50, detail=NASTY)
    clock.events[-2]["message"] = NASTY
    folder = clock.write()
    (folder / "perplexity.json").write_text(json.dumps(perplexity_record((64, 128))))
    (folder / "profile").mkdir()
    events = [(NASTY, 0.0, 0.008), ("ncclAllGather", 0.004, 0.01)]
    write_json_file(
        folder / "profile" / "kernels.json",
        {"first_step": 4, "last_step": 5} | as_record(kernel_table(events), steps=2),
    )
    (folder / "other.json").write_text("[1, 2]")
    return folder


def test_nothing_from_a_file_becomes_markup(rich_run):
    page = make_page(rich_run)
    assert page.count("<script") == 2  # the data, and the page's own
    assert "alert(1)" in page  # shown, as text
    assert "<script>alert" not in page
    assert chart_data(page)["anomalies"]
    assert 'id="profile"' in page
    assert 'id="hosts"' in page


def test_the_policy_allows_only_the_script_that_is_there(rich_run):
    page = make_page(rich_run)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_it_loads_nothing(rich_run):
    page = make_page(rich_run)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"""\b(src|href)=["'](?!#)""", page)


def test_a_run_without_events(tmp_path):
    """Of an older version: neither events nor times; settings from its checkpoint."""
    lines = [{"step": step, "loss": 3.0, "step_seconds": 2.0} for step in range(1, 41)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    step = tmp_path / "checkpoints" / "40"
    (step / "parameters").mkdir(parents=True)
    (step / "config").mkdir()
    config = {"data": {"sequence_length": 64}, "training": {"duration": "50 steps"}}
    (step / "config" / "metadata").write_text(json.dumps(config))
    page = make_page(tmp_path)
    axis = chart_data(page)["axis"]
    assert axis["elapsed"][-1] == pytest.approx(80 / 60, abs=1e-4)
    assert axis["tokensPerStep"] == 0  # the batch is not written there
    assert "40 of 50 steps" in page
    assert 'id="time"' not in page


def test_a_run_that_has_not_done_a_step(tmp_path):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    assert "No step has been reported yet" in make_page(clock.write())


@pytest.mark.parametrize("field", ["config", "blend", "devices", "versions", "steps", "began"])
@pytest.mark.parametrize("value", [3.5, "x", [1], {"data": [1], "model": "x", "training": 2}])
def test_a_record_of_another_kind_counts_as_absent(tmp_path, field, value):
    clock = Clock(tmp_path)
    clock.start(0, loading=1, compiling=1)
    clock.events[0][field] = value
    clock.train(1, 5)
    assert len(chart_data(make_page(clock.write()))["curves"]) > 0


def test_200000_lines_give_a_small_page_that_keeps_the_extremes(tmp_path):
    noise = np.random.default_rng(0).random(200_000).tolist()
    noise[123_456] = 99.0
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step, value in enumerate(noise, 1):
            file.write(json.dumps({"step": step, "time": step * 2.0, "loss": 2 + value}) + "\n")
    page = make_page(tmp_path)
    assert len(page) < 3_000_000
    raw = next(s for s in chart_data(page)["curves"][0]["series"] if s["role"] == "beneath")
    assert max(raw["y"]) == 101.0
    assert raw["x"][raw["y"].index(101.0)] == 123_457
    assert (raw["x"][0], raw["x"][-1]) == (1, 200_000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [str(folder / "nowhere")], "is no folder"),
        (lambda folder: [str(folder)], "holds no metrics.jsonl"),
    ],
)
def test_no_run_is_said(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        main(make(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_of_kernels_is_said(rich_run):
    (rich_run / "profile" / "kernels.json").write_text('{"total_ms": "x"}')
    with pytest.raises(UserError, match="kernels.json: is no table of kernels; remove it"):
        main([str(rich_run)])


def test_a_file_that_is_no_perplexity_is_said(rich_run):
    with pytest.raises(UserError, match="is no report of `tools/evaluate.py perplexity"):
        main([str(rich_run), "--perplexity", str(rich_run / "other.json")])


@pytest.mark.skipif(not BROWSER, reason="no chromium")
def test_a_browser_draws_every_chart_without_a_word(rich_run, tmp_path):
    make_page(rich_run)
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=3000", f"file://{rich_run / 'report.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    charts = done.stdout.split('class="chart')[2:]  # the first is the grid's `charts`
    charts = [chart for chart in charts if "<svg" in chart]
    data = chart_data((rich_run / "report.html").read_text("utf-8"))
    assert len(charts) == len(data["curves"]) + len(data["perplexities"]) == 11
    for chart in charts:
        curves = re.findall(r'class="curve \w+" d="M([^"]*)"', chart)
        assert curves
        for curve in curves:
            points = np.array([point.split(",") for point in curve.split("L")], float)
            assert len(points) > 1
            assert np.isfinite(points).all()
    assert done.stdout.count('class="restart"') == 2 * len(data["curves"])
    assert done.stdout.count('class="anomaly"') == 2 * len(data["anomalies"])
