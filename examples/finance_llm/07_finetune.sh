#!/usr/bin/env bash
# Supervised fine-tuning: the model of stage 06 (of 04, where 06 was skipped) learns to answer. -> runs/tuned
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
start="$WORK/runs/blended/checkpoints"
[[ -d "$start" ]] || start="$WORK/runs/extended/checkpoints"

# Questions and answers from the same documents by template; held-out documents give held-out conversations.
for part in train validation; do
  python3 "$EXAMPLE/conversations.py" --input "$WORK/data/finance/$part.jsonl" --output "$WORK/data/chat_$part.jsonl"
  python3 tools/preprocess_chat.py --input "$WORK/data/chat_$part.jsonl" --output-prefix "$WORK/data/$part" \
    --tokenizer "$WORK/base" --overwrite
done

python3 -m dongwu_jax.train --config configs/sft_smollm2.yaml \
  training.initial_weights="$start" data.tokenizer="$WORK/base" \
  data.blend="$WORK/data/train_chat" data.validation_blend="$WORK/data/validation_chat" \
  checkpoint.directory="$WORK/runs/tuned/checkpoints" "${TUNE[@]}"
bash "$EXAMPLE/evaluate.sh" tuned "$WORK/runs/tuned/checkpoints"
