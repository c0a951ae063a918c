#!/usr/bin/env bash
# The whole road, stage after stage; settings.sh says what can be set.
#   examples/finance_llm/run_all.sh         goes on where it stopped; done stages are left out
#   examples/finance_llm/run_all.sh 05      stage 05 and all after it, done before or not
#   examples/finance_llm/run_all.sh 05 06   these two only
# A stage that is done leaves its seconds in $WORK/done. Trained models stay: delete $WORK/runs/NAME to train again.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
first="${1:-01}" last="${2:-09}"
if [[ $# -gt 2 || ! "$first" =~ ^0[1-9]$ || ! "$last" =~ ^0[1-9]$ || "$first" > "$last" ]]; then
  sed -n '2,6s/^# //p' "$EXAMPLE/run_all.sh"
  [[ "${1:-}" == --help ]] && exit
  fail "run_all.sh $*: stages are 01 to 09, the first before the last"
fi

# What is done was done with these; other ones belong into another folder.
mkdir -p "$WORK/done"
inputs="SIZE=$SIZE MODEL=$MODEL TEXT=$TEXT GENERAL=$GENERAL ELSEWHERE=$ELSEWHERE"
before="$(cat "$WORK/inputs" 2> /dev/null || echo "$inputs")"
[[ "$before" == "$inputs" ]] || fail "WORK=$WORK: was begun with $before; set WORK to another folder, or delete it"
echo "$inputs" > "$WORK/inputs"

for stage in "$EXAMPLE"/[0-9][0-9]_*.sh; do
  name="$(basename "$stage" .sh)" number="$(basename "$stage" | cut -c1-2)"
  if [[ "$number" < "$first" || "$number" > "$last" ]]; then continue; fi
  if [[ $# == 0 && -e "$WORK/done/$name" ]]; then
    echo "== $name: done before, in $(< "$WORK/done/$name") s"
    continue
  fi
  echo "== $name"
  rm -f "$WORK/done/$name"
  began="$SECONDS" status=0
  bash "$stage" || status=$?
  if ((status == LEFT_OUT)); then continue; fi
  if ((status != 0)); then exit "$status"; fi
  seconds=$((SECONDS - began))
  echo "$seconds" > "$WORK/done/$name"
  echo "== $name: $seconds s"
done

if [[ -e "$WORK/data/elsewhere.txt" ]]; then python3 "$EXAMPLE/tables.py" --work "$WORK"; fi
