#!/usr/bin/env bash
# The tuned model for everyone else: transformers, Megatron, vLLM in 8 bits; and the small one of stage 05.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
tuned="$WORK/runs/tuned/checkpoints" export="$WORK/export"

python3 tools/convert.py --from "$tuned" --to "$export/hf" --to-format hf --dtype bf16 --overwrite
if python3 -c 'import torch, transformers' 2> /dev/null; then
  python3 tools/check_export.py --model "$export/hf"  # transformers' logits against ours
else
  echo "No check by transformers: it is not installed (pip install 'dongwu_jax[hf]')"
fi

# Nine heads in three groups: three tensor ranks can share them, two cannot.
python3 tools/convert.py --from "$export/hf" --to "$export/megatron" --to-format megatron --overwrite \
  --target-tensor-parallel-size 3 --target-pipeline-parallel-size 2 --target-naming mcore_te
python3 tools/convert.py verify "$export/hf" "$export/megatron"

for bits in int8 fp8; do
  python3 tools/convert.py --from "$tuned" --to "$export/$bits" --to-format hf --dtype bf16 --quantize "$bits" --overwrite
done
python3 tools/convert.py --from "$WORK/runs/recovered/checkpoints" --to "$export/small" --to-format hf --dtype bf16 --overwrite

for name in hf int8 fp8 small; do
  python3 tools/evaluate.py perplexity --model "$export/$name" --data "$WORK/data/finance/validation.jsonl" \
    "${EVALUATE[@]}" --dtype float32 --json "$WORK/results/$name.finance.json"
done
