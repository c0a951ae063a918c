#!/usr/bin/env bash
# A run on the hosts of a file, over ssh; see --help.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

usage() {
  cat <<'END'
Starts one process per GPU on every host of a file over ssh and ends all of them when one fails.

  ssh_launch.sh --hosts FILE [options] -- COMMAND [ARGUMENT...]

  --hosts FILE            a host a line, `name [slots=8]`; slots is its number of GPUs; # begins a comment.
                          Process 0 runs on the first host, under a name by which the others reach it
  --port N                port of process 0 on the first host (default 12355)
  --log-directory DIR     a log per process on the host where it runs (default logs)
  --env NAME[=VALUE]      set a variable on all hosts, here's value without =VALUE; may be repeated. PATH,
                          LD_LIBRARY_PATH, PYTHONPATH, VIRTUAL_ENV, JAX_*, NCCL_* and XLA_* are passed on anyway
  --grace-seconds N       time that processes get to save and end before they are killed (default 30)
  --max-restarts N        start the command again when it has saved itself and asks for that (exit status 75), and up
                          to N times in a row when it fails; not after 76, bad numbers that would come again, nor after
                          130, 138 and 143, when somebody has ended it (default: never)
  --dry-run               print the commands and start nothing

The command runs in this folder, which every host has under the same path (a shared file system), without a password
(ssh keys). Every line appears here with the number of its process in front. Ctrl-C, or the end of this script in any
way, ends all processes. The exit status is the first that is not 0.
Example:
  tools/launch/ssh_launch.sh --hosts hosts.txt -- \
    python -m dongwu_jax.train --config configs/31b_h100.yaml data.blend=/data/news_text_document
END
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=supervise.sh
source "$here/supervise.sh"

hosts_file="" port=12355 log_directory=logs grace_seconds=30 max_restarts="" dry_run="" given_variables=()
while (($#)); do
  case "$1" in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --) shift && break ;;
  esac
  (($# >= 2)) || fail "$1: needs a value; see --help"
  case "$1" in
    --hosts) hosts_file=$2 ;;
    --port) port=$2 ;;
    --log-directory) log_directory=$2 ;;
    --env) given_variables+=("$2") ;;
    --grace-seconds) grace_seconds=$2 ;;
    --max-restarts) max_restarts=$2 ;;
    *) fail "unknown option $1; see --help (the command comes after --)" ;;
  esac
  shift 2
done
(($#)) || fail "no command; write it after --"
[[ -n "$hosts_file" ]] || fail "--hosts is missing: name a file with one host a line"
[[ -r "$hosts_file" ]] || fail "--hosts $hosts_file: cannot be read"
if [[ ! "$port" =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then
  fail "--port '$port': write a number from 1 to 65535"
fi
[[ "$grace_seconds" =~ ^(0|[1-9][0-9]*)$ ]] || fail "--grace-seconds '$grace_seconds': write a whole number"
[[ "$max_restarts" =~ ^(|0|[1-9][0-9]*)$ ]] || fail "--max-restarts '$max_restarts': write a whole number"

is_ipv6() {
  [[ "$1" =~ ^[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?$ && "$1" =~ ::|(:.*){7} ]]
}

hosts=() slots=()
read_hosts() {
  local line number=0 known
  local -a words
  while IFS= read -r line || [[ -n "$line" ]]; do
    number=$((number + 1))
    line="${line%$'\r'}"
    read -ra words <<<"${line%%#*}"
    ((${#words[@]})) || continue
    ((${#words[@]} == 1)) || [[ ${#words[@]} == 2 && "${words[1]}" =~ ^slots=[1-9][0-9]*$ ]] ||
      fail "$hosts_file, line $number: '$line': write a host name, or NAME slots=8"
    [[ "${words[0]}" != -* ]] || fail "$hosts_file, line $number: '${words[0]}' is not a host name"
    [[ "${words[0]}" != *:* ]] || is_ipv6 "${words[0]#*@}" ||
      fail "$hosts_file, line $number: '${words[0]}' is no IPv6 address: write a host name without a port"
    for known in "${hosts[@]}"; do
      [[ "${known#*@}" != "${words[0]#*@}" ]] || fail "$hosts_file, line $number: ${words[0]#*@} stands twice"
    done
    hosts+=("${words[0]}")
    slots+=("${words[1]:-slots=8}")
  done <"$hosts_file"
  slots=("${slots[@]#slots=}")
}
read_hosts
((${#hosts[@]})) || fail "$hosts_file names no host"
first_host="${hosts[0]#*@}"
if ((${#hosts[@]} > 1)) && [[ "$first_host" =~ ^(localhost|localhost\..*|ip6-localhost|ip6-loopback|127\..*|::1)$ ]]; then
  fail "$hosts_file: the other hosts cannot reach process 0 at $first_host; write the first host's name in the network"
fi

[[ "$first_host" != *:* ]] || first_host="[$first_host]" # an IPv6 address, before a port

variables=()
collect_variables() {
  local name variable
  while read -r name; do
    case "$name" in
      PATH | LD_LIBRARY_PATH | PYTHONPATH | VIRTUAL_ENV | JAX_* | NCCL_* | XLA_*) variables+=("$name=${!name}") ;;
    esac
  done < <(compgen -e)
  for variable in "${given_variables[@]}"; do
    name="${variable%%=*}"
    [[ "$name" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--env '$variable': write NAME or NAME=VALUE"
    if [[ "$variable" != *=* ]]; then
      [[ -n "${!name+set}" ]] || fail "--env $name: it is not set here; write --env $name=VALUE"
      variable="$name=${!name}"
    fi
    variables+=("$variable")
  done
}
collect_variables

num_processes=0
for count in "${slots[@]}"; do
  num_processes=$((num_processes + count))
done
helper="$here/host_processes.sh"
commands=()
first_process=0
for index in "${!hosts[@]}"; do
  commands+=("cd $(quoted "$PWD") && exec $(quoted env "${variables[@]}" bash "$helper" \
    --coordinator "$first_host:$port" --num-processes "$num_processes" --first-process "$first_process" \
    --local-processes "${slots[index]}" --log-directory "$log_directory" --grace-seconds "$grace_seconds" \
    --stop-on-eof -- "$@")")
  first_process=$((first_process + slots[index]))
done

# No password prompts; a host that stops answering is noticed within a minute.
ssh_command=(ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 -o ServerAliveCountMax=4)
if [[ -n "$dry_run" ]]; then
  for index in "${!hosts[@]}"; do
    quoted "${ssh_command[@]}" -- "${hosts[index]}" "${commands[index]}"
    echo
  done
  exit 0
fi

check_hosts() {
  local index status checks=() problems=()
  for index in "${!hosts[@]}"; do
    "${ssh_command[@]}" -- "${hosts[index]}" "$(quoted test -r "$helper")" </dev/null &
    checks+=("$!")
  done
  for index in "${!hosts[@]}"; do
    status=0
    wait "${checks[index]}" || status=$?
    case "$status" in
      0) ;;
      255) problems+=("${hosts[index]} does not answer ssh without a password") ;;
      *) problems+=("${hosts[index]} has no $helper (the folder must be shared)") ;;
    esac
  done
  ((!received)) || exit "$received"
  ((!${#problems[@]})) || fail "$(printf '%s; ' "${problems[@]}")nothing was started"
}
check_hosts

# shellcheck disable=SC2329 # called by supervise
stop() {
  echo "stopping: $# of ${#hosts[@]} hosts still run" >&2
  exec 9>&-
}

# Starts the command on all hosts and waits for its end. The hosts' processes run as long as a pipe, the standard input
# of all ssh, is open here: it closes when this script ends in whatever way, and with its connection on a host that is
# cut off.
run_once() {
  local pipe_folder index leaders=()
  pipe_folder="$(mktemp -d)"
  mkfifo -- "$pipe_folder/open"
  exec 9<>"$pipe_folder/open" # for both, so as not to wait for a reader
  exec 8<"$pipe_folder/open"
  rm -rf -- "$pipe_folder"
  for index in "${!hosts[@]}"; do
    set -m
    "${ssh_command[@]}" -- "${hosts[index]}" "${commands[index]}" <&8 8<&- 9>&- &
    set +m
    leaders+=("$!")
  done
  supervise "$((grace_seconds + 10))" stop "${leaders[@]}"
}

restarts=0
while true; do
  status=0
  run_once || status=$?
  if ((status == 0 || received || status == bad_numbers)) || [[ "$status" =~ ^($interrupted)$ || -z "$max_restarts" ]]; then
    exit "$status"
  elif ((status == saved)); then
    echo "saved: starting again" >&2
    restarts=0
  else
    ((restarts < max_restarts)) || exit "$status"
    restarts=$((restarts + 1))
    echo "exit status $status: starting again, for time $restarts of $max_restarts" >&2
  fi
done
