"""What a block does between its matrix products, with gradients that keep as little as they can.

Differentiating these operation by operation would keep several copies of the activations, some of
them in float32.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) * scale over the last dimension, in float32, returned in the dtype of `x`.

    RMSNorm, Zhang and Sennrich 2019 (https://arxiv.org/abs/1910.07467).

    Args:
        x: [..., embed].
        scale: [embed].
    """
    return _rms_norm_forward(x, scale, epsilon)[0]


_NormResiduals = tuple[jax.Array, jax.Array, jax.Array]


def _rms_norm_forward(
    x: jax.Array, scale: jax.Array, epsilon: float
) -> tuple[jax.Array, _NormResiduals]:
    wide = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * inverse_rms * scale).astype(x.dtype), (x, scale, inverse_rms)


def _rms_norm_backward(
    epsilon: float, residuals: _NormResiduals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, scale, inverse_rms = residuals
    normalised = x.astype(jnp.float32) * inverse_rms
    wide = gradient.astype(jnp.float32)
    of_scale = jnp.sum(wide * normalised, axis=tuple(range(x.ndim - 1)))
    scaled = wide * scale
    along_x = jnp.mean(scaled * normalised, axis=-1, keepdims=True)
    of_x = inverse_rms * (scaled - normalised * along_x)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up (Shazeer 2020, https://arxiv.org/abs/2002.05202), any equal shapes."""
    return jax.nn.silu(gate) * up


def _swiglu_forward(
    gate: jax.Array, up: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return swiglu(gate, up), (gate, up)


def _swiglu_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gate, up = (x.astype(jnp.float32) for x in residuals)
    wide = gradient.astype(jnp.float32)
    sigmoid = jax.nn.sigmoid(gate)
    of_gate = wide * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    of_up = wide * gate * sigmoid
    return of_gate.astype(gradient.dtype), of_up.astype(gradient.dtype)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
