"""Memory of one GPU in closed form: what a training step keeps, and for how long it is there."""

from collections.abc import Mapping
from dataclasses import dataclass

from dongwu_jax.config import RunConfig
from dongwu_jax.parallel.pipeline import Schedule
from dongwu_jax.parallel.sharding import resolve_rules
from dongwu_jax.plan.parameters import parameter_table

# JAX's pool with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9; NCCL, cuDNN and the CUDA context get the rest.
POOL_SHARE = 0.9

_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU at the peak of a step."""

    state: float  # float32 masters and both Adam moments
    gradients: float
    weights: float  # in the dtype of computation
    activations: float  # kept from forward to backward pass
    temporaries: float  # weights joined for use, one block's work, logits

    @property
    def total(self) -> float:
        """Everything at once."""
        return self.state + self.gradients + self.weights + self.activations + self.temporaries


def estimate_memory(config: RunConfig, mesh_shape: Mapping[str, int]) -> MemoryEstimate:
    """The memory of a training step.

    Raises:
        UserError: a sharding rule is impossible.
    """
    model, tensor = config.model, mesh_shape["tensor"]
    rules, table = resolve_rules(config.sharding.rules), parameter_table(config.model)
    width = _BYTES[config.precision.compute_dtype]
    held = table.held(rules, mesh_shape)
    blocks, outside = table.used(rules, mesh_shape)
    block = blocks * mesh_shape["pipe"] / model.num_layers
    joined = 0.0
    if mesh_shape["fsdp"] * mesh_shape["context"] > 1:
        # Two blocks' weights, one of them fetched ahead, and the head, but not the embedding; the
        # gradient of one before it is summed.
        head = outside if model.tie_word_embeddings else outside / 2
        reduced = width + _BYTES[config.precision.grad_reduce_dtype]
        joined = 2 * width * block + width * head + reduced * max(block, head)
    tokens = config.training.micro_batch_size * config.data.sequence_length / mesh_shape["context"]
    chunk = config.training.loss_chunk_tokens * config.training.micro_batch_size or tokens
    logits = 3 * width * min(chunk, tokens) * model.vocab_rows / tensor
    working = _working(config, mesh_shape)
    return MemoryEstimate(
        state=(8 + _BYTES[config.optimizer.first_moment_dtype]) * table.stored(rules, mesh_shape),
        gradients=_BYTES[config.precision.grad_accumulation_dtype] * held,
        weights=width * held,
        activations=_activations(config, mesh_shape),
        temporaries=joined + logits + working,
    )


def _working(config: RunConfig, mesh_shape: Mapping[str, int]) -> float:
    """Bytes of the block whose backward pass runs: what it computes again, and its gradients."""
    if config.training.remat == "none":
        return 0.0
    tokens = config.training.micro_batch_size * config.data.sequence_length / mesh_shape["context"]
    width = _BYTES[config.precision.compute_dtype]
    inner = width * tokens * config.model.intermediate_size / mesh_shape["tensor"]
    gradients = 3 * (inner + _residual(config, mesh_shape))
    return _kept_a_layer(config, mesh_shape, "none") + gradients


def _activations(config: RunConfig, mesh_shape: Mapping[str, int]) -> float:
    """Bytes that wait for the backward pass when most of them do."""
    training, stages = config.training, mesh_shape["pipe"]
    a_layer = _kept_a_layer(config, mesh_shape, training.remat)
    if stages == 1:
        return config.model.num_layers * a_layer
    count = 1
    for size in mesh_shape.values():
        count *= size
    together = config.pipeline_micro_batches(count)
    schedule = Schedule(stages, training.virtual_stages, together)
    layers_a_tick = config.model.num_layers / (stages * training.virtual_stages)
    streams = 4 * together * _residual(config, mesh_shape)  # inputs, outputs, gradients of both
    return schedule.ticks * layers_a_tick * a_layer + streams


def _residual(config: RunConfig, mesh_shape: Mapping[str, int]) -> float:
    """Bytes of one micro batch's residual stream."""
    split = resolve_rules(config.sharding.rules)["residual_length"]
    tokens = config.training.micro_batch_size * config.data.sequence_length
    shards = 1
    for axis in split:
        shards *= mesh_shape[axis]
    width = _BYTES[config.precision.compute_dtype]
    return width * tokens * config.model.hidden_size / shards


def _kept_a_layer(config: RunConfig, mesh_shape: Mapping[str, int], remat: str) -> float:
    """Bytes that one layer keeps of one micro batch under a remat policy."""
    model, tensor = config.model, mesh_shape["tensor"]
    width = _BYTES[config.precision.compute_dtype]
    tokens = config.training.micro_batch_size * config.data.sequence_length / mesh_shape["context"]
    residual = _residual(config, mesh_shape)
    heads = model.num_heads * model.width_per_head
    kv_heads = model.kv_heads * model.width_per_head
    kept = residual  # the block's input
    if remat == "full":
        return kept
    kept += tokens * (width * heads + 4 * model.num_heads) / tensor  # output, softmax statistics
    if remat in ("attention", "offload"):  # XLA may bring back early what waits on the host
        return kept
    kept += width * tokens * (heads + 2 * kv_heads) / tensor
    if remat == "qkv_attention":
        return kept
    kept += residual + 2 * width * tokens * model.intermediate_size / tensor
    if remat == "minimal":
        return kept
    # Both norms' results, and what goes into the last product.
    return kept + 2 * residual + width * tokens * model.intermediate_size / tensor
