"""How far a model's distribution of the next token is from a teacher's.

Like the cross entropy: statistics are float32, the gradient of the logits is made in their dtype,
and nothing of the vocabulary's size is kept in float32. A teacher is never differentiated.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

Direction = Literal["forward_kl", "reverse_kl"]

_SMALLEST_TAIL = 1e-6  # float32 cannot tell a smaller one from rounding


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def token_divergence(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float, direction: Direction
) -> jax.Array:
    """Kullback-Leibler divergence of every position.

    With q = softmax(logits / temperature), and p that of the teacher:
    forward_kl is KL(p || q) (Hinton et al. 2015), reverse_kl KL(q || p) (Gu et al. 2024).

    Args:
        logits, teacher_logits: [batch, length, vocab], any float dtype; the vocabulary may be
            sharded.

    Returns:
        float32 [batch, length].
    """
    return _forward(logits, teacher_logits, temperature, direction)[0]


_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _forward(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float, direction: Direction
) -> tuple[jax.Array, _Residuals]:
    student, teacher = _tempered(logits, temperature), _tempered(teacher_logits, temperature)
    student_normalizer = jax.nn.logsumexp(student, axis=-1)
    teacher_normalizer = jax.nn.logsumexp(teacher, axis=-1)
    between = (student - student_normalizer[..., None]) - (teacher - teacher_normalizer[..., None])
    if direction == "forward_kl":
        expected = jnp.exp(teacher - teacher_normalizer[..., None]) * -between
    else:
        expected = jnp.exp(student - student_normalizer[..., None]) * between
    divergence = jnp.sum(expected, axis=-1)
    residuals = (logits, teacher_logits, student_normalizer, teacher_normalizer, divergence)
    return divergence, residuals


def _backward(
    temperature: float, direction: Direction, residuals: _Residuals, gradient: jax.Array
) -> tuple[jax.Array, None]:
    logits, teacher_logits, student_normalizer, teacher_normalizer, divergence = residuals
    log_student = _tempered(logits, temperature) - student_normalizer[..., None]
    log_teacher = _tempered(teacher_logits, temperature) - teacher_normalizer[..., None]
    student = jnp.exp(log_student)
    if direction == "forward_kl":
        difference = student - jnp.exp(log_teacher)
    else:
        difference = student * (log_student - log_teacher - divergence[..., None])
    return (difference * (gradient / temperature)[..., None]).astype(logits.dtype), None


def _tempered(logits: jax.Array, temperature: float) -> jax.Array:
    return logits.astype(jnp.float32) / temperature


token_divergence.defvjp(_forward, _backward)


@jax.custom_vjp
def top_divergence(
    logits: jax.Array, teacher_ids: jax.Array, teacher_log_probabilities: jax.Array
) -> jax.Array:
    """KL(p || q) over k + 1 outcomes: the teacher's k likeliest tokens, and all others together.

    The last outcome, the tail, keeps the student's probability of everything else where the
    teacher's is; without it that is free, and the k tokens come out too likely.

    Args:
        logits: [batch, length, vocab].
        teacher_ids: int [batch, length, k], different ones in each position.
        teacher_log_probabilities: [batch, length, k + 1]; of these tokens, then of the tail.

    Returns:
        float32 [batch, length].
    """
    return _top_forward(logits, teacher_ids, teacher_log_probabilities)[0]


_TopResiduals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _top_forward(
    logits: jax.Array, ids: jax.Array, log_teacher: jax.Array
) -> tuple[jax.Array, _TopResiduals]:
    # What is stored in 16 bits does not add up to one by itself.
    log_teacher = jax.nn.log_softmax(log_teacher.astype(jnp.float32), axis=-1)
    normalizer = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    log_top = jnp.take_along_axis(logits, ids, axis=-1).astype(jnp.float32) - normalizer[..., None]
    tail = jnp.maximum(1.0 - jnp.sum(jnp.exp(log_top), axis=-1), _SMALLEST_TAIL)
    log_student = jnp.concatenate([log_top, jnp.log(tail)[..., None]], axis=-1)
    divergence = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
    return divergence, (logits, ids, log_teacher, log_student, normalizer)


def _top_backward(residuals: _TopResiduals, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    logits, ids, log_teacher, log_student, normalizer = residuals
    # d/ds of token j is q_j - p_j for the k tokens, and q_j (1 - p_tail / q_tail) for the others.
    ratio = jnp.exp(log_teacher[..., -1] - log_student[..., -1])
    student = jnp.exp(logits.astype(jnp.float32) - normalizer[..., None])
    others = (student * ((1.0 - ratio) * gradient)[..., None]).astype(logits.dtype)
    top_student, top_teacher = jnp.exp(log_student[..., :-1]), jnp.exp(log_teacher[..., :-1])
    correction = (top_student * ratio[..., None] - top_teacher) * gradient[..., None]
    batch, length = (
        jax.lax.broadcasted_iota(jnp.int32, ids.shape, dimension) for dimension in (0, 1)
    )
    of_logits = others.at[batch, length, ids].add(correction.astype(logits.dtype))
    return of_logits, None, None


top_divergence.defvjp(_top_forward, _top_backward)
