#!/usr/bin/env bash
# Text: documents to train on and documents held out, then tokens in Megatron's .bin/.idx.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

# train.jsonl and validation.jsonl of each; a document's own text decides which it goes to.
python3 tools/gather_corpus.py --source "$TEXT" --output "$WORK/data/finance" --overwrite
python3 tools/gather_corpus.py --source "$GENERAL" --output "$WORK/data/general" --overwrite
cat "${ELSEWHERE:-README.md}" > "$WORK/data/elsewhere.txt"
if [[ -z "$ELSEWHERE" ]]; then cat docs/*.md >> "$WORK/data/elsewhere.txt"; fi

# For stage 04: documents that are longer than the model's window. Chapters become whole statutes again.
python3 "$EXAMPLE/long_documents.py" --input "$WORK/data/finance/train.jsonl" "$WORK/data/general/train.jsonl" \
  --tokenizer "$WORK/base" --min-tokens "$LONG_TOKENS" --output "$WORK/data/long.jsonl"

preprocess() { # INPUT NAME
  python3 tools/preprocess_data.py --input "$1" --output-prefix "$WORK/data/$2" --overwrite \
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$WORK/base" --append-eod
}
preprocess "$WORK/data/finance/train.jsonl" finance
preprocess "$WORK/data/finance/validation.jsonl" held_out
preprocess "$WORK/data/general/train.jsonl" general
preprocess "$WORK/data/long.jsonl" long

# What the model is like before anything is trained.
bash "$EXAMPLE/evaluate.sh" base "$WORK/base"
