#!/usr/bin/env bash
# The whole road, stage after stage; settings.sh says what can be set.
#   examples/finance_llm/run_all.sh         goes on where it stopped; done stages are left out
#   examples/finance_llm/run_all.sh 05      stage 05 and all after it, done before or not
#   examples/finance_llm/run_all.sh 05 06   these two only
# A stage that is done leaves its seconds in $WORK/done. Trained models stay: delete $WORK/runs/NAME to train again.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
first="${1:-00}" last="${2:-99}"
mkdir -p "$WORK/done"

for stage in "$EXAMPLE"/[0-9][0-9]_*.sh; do
  name="$(basename "$stage" .sh)" number="$(basename "$stage" | cut -c1-2)"
  if [[ "$number" < "$first" || "$number" > "$last" ]]; then continue; fi
  if [[ $# == 0 && -e "$WORK/done/$name" ]]; then
    echo "== $name: done before, in $(< "$WORK/done/$name") s"
    continue
  fi
  echo "== $name"
  rm -f "$WORK/done/$name"
  began="$SECONDS"
  bash "$stage"
  seconds=$((SECONDS - began))
  echo "$seconds" > "$WORK/done/$name"
  echo "== $name: $seconds s"
done

if [[ -e "$WORK/results/base.finance.json" ]]; then python3 "$EXAMPLE/tables.py" --work "$WORK"; fi
