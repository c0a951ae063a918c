#!/usr/bin/env bash
# A side road: the extended model cut to 60% of its parameters, which then learns from the whole one. -> runs/recovered
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

python3 tools/prune.py --model "$WORK/extended" --calibration "$WORK/data/finance/train.jsonl" "${CALIBRATION[@]}" \
  --target num_layers=24,hidden_size=504,intermediate_size=1024 --out "$WORK/pruned" --overwrite
bash "$EXAMPLE/evaluate.sh" pruned "$WORK/pruned"

python3 -m dongwu_jax.train --config configs/recover_smollm2.yaml \
  training.initial_weights="$WORK/pruned" distillation.teacher="$WORK/extended" data.tokenizer="$WORK/base" \
  data.blend="[{prefix: $WORK/data/finance_text_document, weight: 1}, {prefix: $WORK/data/general_text_document, weight: 2}]" \
  checkpoint.directory="$WORK/runs/recovered/checkpoints" "${RECOVER[@]}"
bash "$EXAMPLE/evaluate.sh" recovered "$WORK/runs/recovered/checkpoints"
