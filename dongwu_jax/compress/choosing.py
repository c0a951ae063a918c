"""From scores of a model's parts to what is kept of it."""

from collections.abc import Sequence

import numpy as np

from dongwu_jax.compress.importance import Importance
from dongwu_jax.compress.selection import BlockSelection, Indices, Selection
from dongwu_jax.compress.shapes import Shape
from dongwu_jax.config import ModelConfig


def choose(
    scores: Importance,
    shape: Shape,
    whole: ModelConfig,
    dropped_layers: Sequence[int] | None = None,
    balanced_over: int = 1,
) -> Selection:
    """Keep the parts with the highest scores.

    Args:
        dropped_layers: blocks to leave out, instead of those with the lowest scores.
        balanced_over: keep as many channels and heads of each of so many equal parts, in which
            tensor-parallel ranks hold them.
    """
    if dropped_layers is None:
        layers = _best(scores.blocks, shape.num_layers)
    else:
        layers = np.setdiff1d(np.arange(whole.num_layers), dropped_layers)
    blocks = []
    for layer in layers.tolist():
        mlp = _best(scores.mlp[layer], shape.intermediate_size, balanced_over)
        kv_heads, heads = _best_heads(scores.heads[layer], shape, whole.kv_heads, balanced_over)
        blocks.append(BlockSelection(layer, mlp, kv_heads, heads))
    return Selection(_best(scores.hidden, shape.hidden_size), tuple(blocks))


def _best(scores: np.ndarray, count: int, parts: int = 1) -> Indices:
    """The places of the highest scores, ascending; of equal ones the first."""
    by_part = scores.reshape(parts, -1)
    order = np.argsort(-by_part, axis=1, kind="stable")[:, : count // parts]
    return np.sort((order + np.arange(parts)[:, None] * by_part.shape[1]).ravel())


def _best_heads(
    scores: np.ndarray, shape: Shape, had_kv_heads: int, parts: int
) -> tuple[Indices, Indices]:
    """Key/value heads by their best query heads together, and those query heads."""
    group = shape.num_heads // shape.num_kv_heads
    by_group = scores.reshape(had_kv_heads, -1)
    best = np.sort(np.argsort(-by_group, axis=1, kind="stable")[:, :group], axis=1)
    worth = np.take_along_axis(by_group, best, axis=1).sum(axis=1)
    kv_heads = _best(worth, shape.num_kv_heads, min(parts, had_kv_heads))
    heads = best[kv_heads] + kv_heads[:, None] * by_group.shape[1]
    return kv_heads, heads.ravel()


def norm_scales(scores: Importance, selection: Selection) -> dict[str, float]:
    """Factors for the gains of norms, by name in the whole model.

    A norm divides by the root mean square of the channels that are left; where those were larger
    than the rest, its output shrinks. The calibration text says by how much, on average.
    """
    names = [
        f"layers.{layer}.{norm}"
        for layer in range(len(scores.blocks))
        for norm in ("attention_norm", "mlp_norm")
    ]
    kept = scores.stream[:, selection.hidden].mean(axis=1)
    ratio = np.sqrt(kept / scores.stream.mean(axis=1))
    return dict(zip([*names, "final_norm"], ratio.tolist(), strict=True))


def random_scores(config: ModelConfig, seed: int) -> Importance:
    """Scores without a reason, for a baseline; the stream's are even."""
    rng = np.random.default_rng(seed)
    layers, hidden = config.num_layers, config.hidden_size
    return Importance(
        rng.random(layers),
        rng.random(hidden),
        rng.random((layers, config.intermediate_size)),
        rng.random((layers, config.num_heads)),
        np.ones((2 * layers + 1, hidden)),
    )
