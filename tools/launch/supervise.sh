# shellcheck shell=bash
# Sourced: waits for background jobs, and ends all of them when one fails or the launcher is told to stop.

# Exit codes of the training command (docs/operations.md).
saved=75 # it has stopped and saved, and goes on when it is started again
# shellcheck disable=SC2034 # read by those who start again
bad_numbers=76 # started again, it would end alike
# shellcheck disable=SC2034
interrupted='130|138|143' # by somebody who wants it to end: Ctrl-C, a second SIGUSR1 or SIGTERM
received=0 # exit status that a signal asks for: 128 + its number
trap 'received=130' INT
trap 'received=143' TERM
trap 'received=129' HUP

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints its arguments quoted for any POSIX shell, as one line.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s' "${line# }"
}

# supervise GRACE_SECONDS STOP LEADER...: waits until all have ended; returns the first non-zero status, or 0. When the
# launcher was told to stop, the status of a run that has saved itself wins over that of the signal.
# A leader is a background process that leads its own process group (started under `set -m`). On the first failure,
# and on a signal, the function STOP is called once with the leaders that still run; groups that have not ended
# GRACE_SECONDS later are killed.
supervise() {
  local grace_seconds=$1 stop=$2 first_status=0 has_saved="" deadline=0 status leader
  shift 2
  local running=("$@")
  while ((${#running[@]})); do
    local still=()
    for leader in "${running[@]}"; do
      if kill -0 "$leader" 2>/dev/null; then
        still+=("$leader")
        continue
      fi
      status=0
      wait "$leader" || status=$?
      ((first_status)) || first_status=$status
      ((status != saved)) || has_saved=1
    done
    running=("${still[@]}")
    ((first_status)) || first_status=$received
    if ((first_status && ${#running[@]})); then
      if ((!deadline)); then
        deadline=$((SECONDS + grace_seconds))
        "$stop" "${running[@]}"
      elif ((SECONDS >= deadline)); then
        for leader in "${running[@]}"; do
          kill -KILL -- "-$leader" 2>/dev/null || true
        done
      fi
    fi
    sleep 0.2
  done
  ((!received)) || [[ -z "$has_saved" ]] || first_status=$saved
  return "$first_status"
}
