"""AdamW over float32 master weights."""

import jax
import jax.numpy as jnp
import optax

from dongwu_jax.config.sections import OptimizerConfig
from dongwu_jax.models.parameters import Parameters, named_parameters, parameter_tree


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019).

    The update is to be multiplied by minus the learning rate, which the step computes itself.
    """
    return optax.chain(
        optax.scale_by_adam(
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            mu_dtype=config.first_moment_dtype,
        ),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )


def decayed(parameters: Parameters) -> Parameters:
    """The tree with True for matrices, False for norms and biases."""
    names = named_parameters(parameters)
    return parameter_tree({name: not name.endswith(("norm", "bias")) for name in names})


def clip_by_global_norm(
    gradients: Parameters, max_norm: float | None
) -> tuple[Parameters, jax.Array]:
    """Scale gradients so that their global L2 norm is at most `max_norm`.

    Returns:
        The gradients, and the norm before clipping (float32 scalar).
    """
    norm = optax.tree.norm(gradients)
    if max_norm is None:
        return gradients, norm
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda gradient: gradient * scale, gradients), norm
