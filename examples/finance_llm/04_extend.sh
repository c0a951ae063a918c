#!/usr/bin/env bash
# A longer context: the model of stage 03 from 8192 to 32,768 positions. -> runs/extended, $WORK/extended
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
before="$WORK/runs/continued/checkpoints" after="$WORK/runs/extended/checkpoints"

python3 tools/evaluate.py perplexity --model "$before" --data "$WORK/data/elsewhere.txt" \
  "${WINDOWS[@]}" --json "$WORK/results/continued.windows.json"

# A new rotary base (ntk), because every format can say it; Megatron has no word for yarn.
python3 -m dongwu_jax.train --config configs/extend_smollm2_32k.yaml model.rope_scaling.type=ntk \
  training.initial_weights="$before" data.tokenizer="$WORK/base" data.blend="$WORK/data/long_text_document" \
  checkpoint.directory="$after" "${EXTEND[@]}"

python3 tools/evaluate.py perplexity --model "$after" --data "$WORK/data/elsewhere.txt" \
  "${WINDOWS[@]}" --json "$WORK/results/extended.windows.json"
bash "$EXAMPLE/evaluate.sh" extended "$after"

# As a Hugging Face folder: the teacher of stages 05 and 06.
python3 tools/convert.py --from "$after" --to "$WORK/extended" --to-format hf --dtype bf16 --overwrite
