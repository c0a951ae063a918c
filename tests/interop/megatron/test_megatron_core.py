"""Megatron's own model (megatron-core, on a CPU) loads what we write and computes the same."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron_models import load_with_torch, random_weights, small_config, write_checkpoint
from reference_models import our_logits, random_tokens

from dongwu_jax.config.sections import RopeScaling
from dongwu_jax.interop.megatron.export import MegatronLayout
from dongwu_jax.models.parameters import parameter_tree

pytest.importorskip("megatron.core", reason="needs pip install --no-deps megatron-core==0.16.1")

pytestmark = pytest.mark.filterwarnings("ignore:::megatron|torch")


class _NoRandomness:
    """Stands for the states of GPU random numbers, which dropout of 0 does not need."""

    def fork(self):
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Megatron's modules, in a process group of one."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.models.gpt import gpt_layer_specs, gpt_model
    from megatron.core.transformer.transformer_config import TransformerConfig

    store = f"file://{tmp_path_factory.mktemp('group')}/store"
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=store)
    parallel_state.initialize_model_parallel()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "current_device", lambda: "cpu")
        patched.setattr(tensor_parallel, "get_cuda_rng_tracker", _NoRandomness)
        yield SimpleNamespace(
            Config=TransformerConfig, Model=gpt_model.GPTModel, specs=gpt_layer_specs
        )
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def _megatron_model(core, config, args):
    """As Megatron's training script builds it from a checkpoint's arguments."""
    settings = core.Config(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups if args.group_query_attention else None,
        kv_channels=args.kv_channels,
        normalization=args.normalization,
        layernorm_epsilon=args.norm_epsilon,
        add_bias_linear=args.add_bias_linear,
        add_qkv_bias=args.add_qkv_bias,
        gated_linear_unit=args.swiglu,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=args.hidden_dropout,
        attention_dropout=args.attention_dropout,
        use_cpu_initialization=True,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
    )
    return core.Model(
        settings,
        core.specs.get_gpt_layer_local_spec(normalization=args.normalization),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        position_embedding_type=args.position_embedding_type,
        rotary_base=args.rotary_base,
        rotary_percent=args.rotary_percent,
        seq_len_interpolation_factor=args.rotary_seq_len_interpolation_factor,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
    ).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 8, "tie_word_embeddings": True},
        {"num_kv_heads": 4, "qkv_bias": True, "rope_theta": 5e5},
        {"rope_scaling": RopeScaling(factor=4)},
    ],
    ids=["mha", "gqa tied", "biases", "interpolated"],
)
def test_megatron_computes_our_logits(core, tmp_path, changes):
    config = small_config(num_layers=2, padded_vocab_size=56, head_dim=4, **changes)
    weights = {name: 0.3 * values for name, values in random_weights(config).items()}
    folder = write_checkpoint(tmp_path / "model", config, weights, MegatronLayout("mcore"))
    contents = load_with_torch(folder / "release/mp_rank_00/model_optim_rng.pt")
    model = _megatron_model(core, config, contents["args"])
    model.load_state_dict(contents["model"], strict=True)
    tokens = random_tokens(50)
    length = tokens.shape[1]
    with torch.no_grad():
        theirs = model(
            torch.from_numpy(tokens),
            torch.arange(length).expand(len(tokens), -1),
            torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1),
        )
    ours = our_logits(config, parameter_tree(weights), tokens)
    np.testing.assert_allclose(ours, theirs.float().numpy(), atol=2e-4, rtol=2e-4)
