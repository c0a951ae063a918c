# shellcheck shell=bash
# Sourced by every launcher: what GPU runs want in their environment. A value that is already set wins.

# JAX takes three quarters of a GPU by default; the rest of these 90 % is for NCCL and cuDNN.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"

# NCCL says nothing by default when a network card or a peer fails.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# One hardware queue keeps matrix products and collectives in the order in which XLA issued them. For A100, H100, H200
# (compute capability 8.0 and 9.0) alone: newer GPUs order them without it.
if [[ -z "${CUDA_DEVICE_MAX_CONNECTIONS:-}" ]] && command -v nvidia-smi >/dev/null; then
  case "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader --id=0 2>/dev/null)" in
    8.0 | 9.0) export CUDA_DEVICE_MAX_CONNECTIONS=1 ;;
  esac
fi
