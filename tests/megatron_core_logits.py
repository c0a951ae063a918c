"""Loads distributed checkpoints into Megatron-core's own model on CPU; run as a script.

Usage: python megatron_core_logits.py TOKENS.npy ITERATION_FOLDER ...

Writes logits.npy into each folder.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig


class NoRandomness:
    """Stands for the tracker of GPU random states, which dropout of 0 does not need."""

    def fork(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


def megatron_model(args: argparse.Namespace) -> GPTModel:
    """What Megatron builds from a checkpoint's arguments."""
    config = TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups if args.group_query_attention else None,
        kv_channels=args.kv_channels,
        layernorm_epsilon=args.norm_epsilon,
        add_bias_linear=args.add_bias_linear,
        add_qkv_bias=args.add_qkv_bias,
        normalization=args.normalization,
        gated_linear_unit=args.swiglu,
        activation_func=torch.nn.functional.silu,
        use_cpu_initialization=True,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        hidden_dropout=args.hidden_dropout,
        attention_dropout=args.attention_dropout,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization=args.normalization),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        position_embedding_type=args.position_embedding_type,
        rotary_base=args.rotary_base,
        rotary_percent=args.rotary_percent,
        seq_len_interpolation_factor=args.rotary_seq_len_interpolation_factor,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
    ).eval()


def _logits(folder: Path, tokens: torch.Tensor) -> np.ndarray:
    """Of a checkpoint, every key of which must match the model's."""
    args = dist_checkpointing.load_common_state_dict(str(folder))["args"]
    model = megatron_model(args)
    loaded = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(folder))
    model.load_state_dict(loaded["model"], strict=True)
    length = tokens.shape[1]
    positions = torch.arange(length).expand_as(tokens)
    mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)[None, None]
    with torch.no_grad():
        return model(tokens, positions, mask).numpy()


def main(tokens_file: str, *folders: str) -> None:
    """Write the logits of each checkpoint."""
    rendezvous = f"file://{tempfile.mkdtemp()}/rendezvous"
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=rendezvous)
    parallel_state.initialize_model_parallel(1, 1)
    torch.cuda.current_device = lambda: "cpu"
    tensor_parallel.get_cuda_rng_tracker = NoRandomness
    tokens = torch.from_numpy(np.load(tokens_file))
    for folder in map(Path, folders):
        np.save(folder / "logits.npy", _logits(folder, tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])
