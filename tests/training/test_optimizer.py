"""AdamW and clipping against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.sections import OptimizerConfig
from dongwu_jax.models.parameters import abstract_parameters, named_parameters, parameter_tree
from dongwu_jax.training.optimizer import clip_by_global_norm, decayed, make_optimizer

RNG = np.random.default_rng(0)
CONFIG = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, beta2=0.95)


def test_ten_steps_equal_torch_adamw():
    values = {"mlp.up_proj": RNG.normal(size=(3, 4)), "norm": RNG.normal(size=4)}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    ours = parameter_tree(jax.tree.map(jnp.asarray, values))
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in values.items()}
    groups = [
        {"params": [theirs["mlp.up_proj"]], "weight_decay": 0.1},
        {"params": [theirs["norm"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    optimizer = make_optimizer(CONFIG)
    state = optimizer.init(ours)
    for _ in range(10):
        gradients = {n: RNG.normal(size=v.shape).astype(np.float32) for n, v in values.items()}
        for name, gradient in gradients.items():
            theirs[name].grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        reference.step()
        clipped, _ = clip_by_global_norm(parameter_tree(jax.tree.map(jnp.asarray, gradients)), 1.0)
        updates, state = optimizer.update(clipped, state, ours)
        ours = jax.tree.map(lambda p, u: p - 0.01 * u, ours, updates)
    for name, value in named_parameters(ours).items():
        np.testing.assert_allclose(value, theirs[name].detach(), rtol=2e-5, atol=2e-6)


def test_norms_and_biases_are_not_decayed():
    config = ModelConfig(
        hidden_size=16, intermediate_size=8, num_heads=2, num_layers=1, qkv_bias=True
    )
    flags = named_parameters(decayed(abstract_parameters(config)))
    spared = {name for name, flag in flags.items() if not flag}
    block = "layers.0."
    assert spared == {
        "final_norm",
        f"{block}attention_norm",
        f"{block}mlp_norm",
        f"{block}attention.q_bias",
        f"{block}attention.k_bias",
        f"{block}attention.v_bias",
    }


def test_small_gradients_are_left_alone():
    gradients = {"a": jnp.asarray([0.3, 0.4])}
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    np.testing.assert_allclose(norm, 0.5)
    np.testing.assert_allclose(clipped["a"], gradients["a"])
    np.testing.assert_array_equal(clip_by_global_norm(gradients, None)[0]["a"], gradients["a"])
