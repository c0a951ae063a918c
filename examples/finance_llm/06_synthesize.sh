#!/usr/bin/env bash
# Synthetic text: a teacher goes on with the beginnings of your documents; filtered, it becomes a third of
# what the extended model trains on. -> runs/blended
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

if [[ "$SYNTHESIS" != vllm ]]; then
  python3 tools/synthesize.py --server "$SYNTHESIS" --model "$TEACHER" --tokenizer "$TEACHER" \
    --input "$WORK/data/finance/train.jsonl" --output "$WORK/synthetic" "${SYNTHESIZE[@]}"
elif has_vllm; then
  "$VLLM_PYTHON" tools/synthesize.py --model "$TEACHER" --engine-option max_model_len=2048 \
    --input "$WORK/data/finance/train.jsonl" --output "$WORK/synthetic" "${SYNTHESIZE[@]}" "${ENGINE[@]}"
else
  echo "Stage 06 is skipped: $VLLM_PYTHON has no vLLM; set VLLM_PYTHON, or SYNTHESIS to the URL of a server"
  exit "$LEFT_OUT"
fi

python3 tools/build_corpus.py --input "$WORK/synthetic" --output "$WORK/corpus" --overwrite \
  --original "$WORK/data/finance/train.jsonl" --min-new-tokens "$MIN_NEW_TOKENS" \
  ${FINEVAL:+--decontaminate "$FINEVAL"}
python3 tools/preprocess_data.py --input "$WORK/corpus/text.jsonl" --output-prefix "$WORK/data/synthetic" --overwrite \
  --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$WORK/base" --append-eod

python3 -m dongwu_jax.train --config configs/distill_smollm2.yaml \
  training.initial_weights="$WORK/runs/extended/checkpoints" data.tokenizer="$WORK/base" \
  data.blend="[{prefix: $WORK/data/synthetic_text_document, weight: 1}, {prefix: $WORK/data/finance_text_document, weight: 1}, {prefix: $WORK/data/general_text_document, weight: 1}]" \
  checkpoint.directory="$WORK/runs/blended/checkpoints" "${SMALL[@]}"
bash "$EXAMPLE/evaluate.sh" blended "$WORK/runs/blended/checkpoints"
