"""A run that is killed at moments drawn by lot ends with the bits of one that is not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import failure, load_script

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills", "steps"), [(1, 10, 800), (2, 3, 200)])
def test_kills_at_any_moment_change_nothing(processes, kills, steps, tmp_path):
    command = [sys.executable, str(CHAOS), str(tmp_path), "--processes", str(processes)]
    command += ["--kills", str(kills), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal bit for bit" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "kills.jsonl").read_text().splitlines()]
    assert len(records) == kills
    assert len({record["phase"] for record in records}) > 1


def test_a_file_is_no_folder_for_a_run(capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert f"{file} is no folder" in failure(capsys, load_script(CHAOS).main, file)
