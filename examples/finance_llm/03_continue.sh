#!/usr/bin/env bash
# Continued pre-training: $WORK/base reads finance text, and other text beside it. -> runs/continued
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

python3 -m dongwu_jax.train --config "$EXAMPLE/continue.yaml" \
  training.initial_weights="$WORK/base" data.tokenizer="$WORK/base" \
  data.blend="[{prefix: $WORK/data/finance_text_document, weight: 2}, {prefix: $WORK/data/general_text_document, weight: 1}]" \
  data.validation_blend="$WORK/data/held_out_text_document" \
  checkpoint.directory="$WORK/runs/continued/checkpoints" "${SMALL[@]}"

bash "$EXAMPLE/evaluate.sh" continued "$WORK/runs/continued/checkpoints"
