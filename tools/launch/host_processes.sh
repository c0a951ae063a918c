#!/usr/bin/env bash
# One process per GPU of this host; see --help.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

usage() {
  cat <<'END'
Starts one process per GPU of this host and ends all of them when one fails.

  host_processes.sh --coordinator HOST:PORT --num-processes N --first-process I [options] -- COMMAND [ARGUMENT...]

  --coordinator HOST:PORT   where process 0 of the run listens
  --num-processes N         processes of the whole run
  --first-process I         number of this host's first process
  --local-processes N       processes on this host, one a GPU (default 8)
  --log-directory DIR       a log per process, appended to (default logs)
  --grace-seconds N         time that processes get to save and end before they are killed (default 30)
  --stop-on-eof             stop when standard input closes, as it does when the launching host goes away

Every line also appears here, with the number of its process in front. The exit status is the first that is not 0.
Example, 2 hosts of 8 GPUs, the second one:
  tools/launch/host_processes.sh --coordinator node1:12355 --num-processes 16 --first-process 8 -- \
    python -m dongwu_jax.train --config configs/13b_h100.yaml
END
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=supervise.sh
source "$here/supervise.sh"

coordinator="" num_processes="" first_process="" local_processes=8 log_directory=logs grace_seconds=30 stop_on_eof=""
while (($#)); do
  case "$1" in
    --help | -h) usage && exit 0 ;;
    --stop-on-eof) stop_on_eof=1 && shift && continue ;;
    --) shift && break ;;
  esac
  (($# >= 2)) || fail "$1: needs a value; see --help"
  case "$1" in
    --coordinator) coordinator=$2 ;;
    --num-processes) num_processes=$2 ;;
    --first-process) first_process=$2 ;;
    --local-processes) local_processes=$2 ;;
    --log-directory) log_directory=$2 ;;
    --grace-seconds) grace_seconds=$2 ;;
    *) fail "unknown option $1; see --help (the command comes after --)" ;;
  esac
  shift 2
done
(($#)) || fail "no command; write it after --"
[[ "$coordinator" == ?*:+([0-9]) ]] || fail "--coordinator '$coordinator': write HOST:PORT"
for option in num_processes first_process local_processes grace_seconds; do
  [[ "${!option}" =~ ^(0|[1-9][0-9]*)$ ]] || fail "--${option//_/-} '${!option}': write a whole number"
done
((local_processes >= 1)) || fail "--local-processes 0: write at least 1"
((first_process + local_processes <= num_processes)) ||
  fail "--first-process $first_process + --local-processes $local_processes exceeds --num-processes $num_processes"

# shellcheck source=environment.sh
source "$here/environment.sh"
mkdir -p -- "$log_directory"
leaders=()

# start LOCAL_INDEX COMMAND...: every process sees all GPUs of the host and is told which one is its own.
start() {
  local local_index=$1 process=$((first_process + $1)) log
  shift
  log="$log_directory/process-$(printf '%04d' "$process").log"
  set -m
  (
    set +m
    trap '' INT TERM HUP # what keeps the output is deaf from its beginning
    exec 3>&2 2>/dev/null # without this shell's own "Terminated"
    exec 4> >(keep_output "$process" "$log")
    output=$!
    trap : INT TERM HUP # outlive the command, which gets the default actions
    status=0
    env JAX_COORDINATOR_ADDRESS="$coordinator" JAX_NUM_PROCESSES="$num_processes" \
      JAX_PROCESS_ID="$process" JAX_LOCAL_DEVICE_IDS="$local_index" \
      "$@" </dev/null >&4 2>&4 3>&- 4>&- || status=$?
    exec 4>&-
    kill -TERM 0 # children that the command left behind
    for ((waits = 0; waits < 50; waits++)); do # the last lines of output are on their way
      kill -0 "$output" || break
      sleep 0.1
    done
    exit "$status"
  ) &
  set +m
  leaders+=("$!")
}

# keep_output PROCESS LOG: standard input goes to a log, and on with the number of its process in front.
keep_output() {
  tee -a -p -- "$2" 2>&3 | sed -u "s/^/[$1] /" 2>&3
}

# shellcheck disable=SC2329 # called by supervise
stop() {
  echo "stopping the $# processes of $(hostname) that still run" >&2
  local leader
  for leader in "$@"; do
    kill -TERM -- "-$leader" 2>/dev/null || true
  done
}

watcher=""
if [[ -n "$stop_on_eof" ]]; then
  set -m
  {
    cat >/dev/null
    kill -TERM "$$"
  } <&0 &
  set +m
  watcher=$!
  disown "$watcher"
fi
for ((index = 0; index < local_processes; index++)); do
  start "$index" "$@"
done
status=0
supervise "$grace_seconds" stop "${leaders[@]}" || status=$?
[[ -z "$watcher" ]] || kill -KILL -- "-$watcher" 2>/dev/null || true
exit "$status"
