"""What tests of the launchers share: stand-ins that work right here, and what they report."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "tools" / "launch"

# Like a real one: a fresh environment, the login shell (not bash), 255 when the host is away.
FAKE_SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
host=$2
[ "$host" != away ] || exit 255
exec env -i HOME="$HOME" PATH=/usr/bin:/bin FAKE_HOST="$host" sh -c "$3"
"""
FAKE_SRUN = f"""#!{sys.executable}
import itertools, json, os, signal, subprocess, sys
options = list(itertools.takewhile(lambda word: word.startswith("--"), sys.argv[1:]))
command = sys.argv[1 + len(options):]
options = dict(word[2:].split("=", 1) for word in options)
json.dump([options, dict(os.environ)], open("srun.json", "w"))
tasks = []
for rank in range(int(options["ntasks"])):
    local = rank % int(options["ntasks-per-node"])
    step = {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local)}}
    log = open(options["output"].replace("%4t", f"{{rank:04d}}"), "a")
    tasks.append(subprocess.Popen(command, env={{**os.environ, **step}}, stdout=log, stderr=log))
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(abs(task.wait()) for task in tasks))
"""
FAKE_SCONTROL = """#!/bin/sh
echo "$@" >> scontrol.log
[ "$1" = requeue ] || echo "JobState=$FAKE_STATE Requeue=1 BatchFlag=1"
"""
# Writes what a process was given to DIR/NUMBER.json.
REPORT = """
import json, os, sys
number = os.environ.get("JAX_PROCESS_ID") or os.environ["SLURM_PROCID"]
with open(f"{sys.argv[1]}/{number}.json", "w") as file:
    json.dump({"environment": dict(os.environ), "arguments": sys.argv[2:]}, file)
print("reported")
"""
# All write their pid; process 0 then ends with the given status, the others sleep.
ONE_ENDS = """
import glob, os, signal, sys, time
folder, status, deaf = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "deaf"
number = os.environ.get("JAX_PROCESS_ID") or os.environ["SLURM_PROCID"]
if deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(f"{folder}/{number}.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"{folder}/{number}.new", f"{folder}/{number}.pid")
while number != "0" or status < 0 or len(glob.glob(f"{folder}/*.pid")) < 2:
    time.sleep(0.05)
sys.exit(status)
"""
# Arguments that a shell would change if they were not quoted.
AWKWARD = ["with space", "it's", '"$HOME" `id` \\', "a=[1, 2]", "", "*", "两 字\nline", "--port"]


def finish(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=200
    )


def started(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("*.pid")]


def reports(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
