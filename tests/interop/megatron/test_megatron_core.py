"""Megatron's own model (megatron-core, on a CPU) loads what we write and computes the same."""

import numpy as np
import pytest
import torch
from megatron_models import load_with_torch, random_weights, small_config, write_checkpoint
from reference_models import our_logits, random_tokens

from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.interop.megatron.export import MegatronLayout
from dongwu_jax.models.parameters import parameter_tree

pytest.importorskip("megatron.core", reason="needs pip install --no-deps megatron-core==0.16.1")

pytestmark = pytest.mark.filterwarnings("ignore:::megatron|torch")


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Megatron's model of a checkpoint's arguments, in a process group of one."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron_core_logits import NoRandomness, megatron_model

    store = f"file://{tmp_path_factory.mktemp('group')}/store"
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=store)
    parallel_state.initialize_model_parallel()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "current_device", lambda: "cpu")
        patched.setattr(tensor_parallel, "get_cuda_rng_tracker", NoRandomness)
        yield megatron_model
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


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
    model = core(contents["args"])
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
