#!/usr/bin/env bash
# A page for each run; then vLLM serves the export and answers one question.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

for run in "$WORK"/runs/*/; do
  python3 -m dongwu_jax.report "$run"
done

command -v curl > /dev/null || fail "curl is not installed; it asks the server"
if ! has_vllm; then
  echo "Serving is skipped: $VLLM_PYTHON has no vLLM; set VLLM_PYTHON to a Python that has"
  exit "$LEFT_OUT"
fi
"$VLLM_PYTHON" -m vllm.entrypoints.openai.api_server --model "$WORK/export/hf" --served-model-name finance \
  --host 127.0.0.1 --port "$PORT" "${SERVE[@]}" > "$WORK/vllm.log" 2>&1 &
server=$!
trap 'kill "$server" 2> /dev/null || true; wait "$server" || true' EXIT
deadline=$((SECONDS + 600))
until curl --silent --fail "http://127.0.0.1:$PORT/health"; do
  kill -0 "$server" || { tail "$WORK/vllm.log"; exit 1; }
  if ((SECONDS > deadline)); then tail "$WORK/vllm.log"; fail "vLLM does not answer on port $PORT"; fi
  sleep 2
done
curl --silent --fail "http://127.0.0.1:$PORT/v1/chat/completions" --header 'Content-Type: application/json' \
  --data '{"model": "finance", "max_tokens": 64, "temperature": 0, "messages": [{"role": "user", "content": "《中华人民共和国证券法》第一条是怎么规定的？"}]}' \
  | tee "$WORK/results/answer.json"
echo
