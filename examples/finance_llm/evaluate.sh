#!/usr/bin/env bash
# evaluate.sh NAME MODEL: the measures that every stage ends with, as $WORK/results/NAME.*.json.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
[[ $# == 2 ]] || fail "usage: evaluate.sh NAME MODEL"
name="$1" model="$2"

python3 tools/evaluate.py perplexity --model "$model" --data "$WORK/data/finance/validation.jsonl" \
  "${EVALUATE[@]}" --json "$WORK/results/$name.finance.json"
python3 tools/evaluate.py perplexity --model "$model" --data "$WORK/data/elsewhere.txt" \
  "${EVALUATE[@]}" --json "$WORK/results/$name.elsewhere.json"
if [[ -n "$FINEVAL" ]]; then
  python3 tools/evaluate.py harness --model "$model" --tasks fineval --fineval-data "$FINEVAL" \
    "${FINEVAL_SIZE[@]}" --json "$WORK/results/$name.fineval.json"
else
  echo "FinEval is skipped: FINEVAL names no folder"
fi
