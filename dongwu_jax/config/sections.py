"""What a run is: every setting, its type, its default and one sentence of explanation.

The sections are frozen pydantic models that refuse unknown keys. `run.py` composes them and
checks what involves more than one of them.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from dongwu_jax.config.durations import Duration
from dongwu_jax.config.section import Section


class MeshConfig(Section):
    """How devices are arranged. The product of all axes is the number of devices."""

    pipe: PositiveInt = Field(
        1,
        description="number of pipeline stages, each with its share of the layers; for models that "
        "fit no other way, or slow links",
    )
    data: int = Field(
        -1,
        description="number of replicas that split the batch, 1 or more; -1: all devices that the "
        "other axes leave over",
    )
    fsdp: PositiveInt = Field(
        1,
        description="number of shards of parameters, gradients and optimizer state; splits the "
        "batch too. The first to raise when a model does not fit",
    )
    context: PositiveInt = Field(
        1,
        description="number of shards of each sequence; splits weights as fsdp does. For long "
        "sequences",
    )
    tensor: PositiveInt = Field(
        1,
        description="number of shards of heads, feed-forward, vocabulary and, between blocks, the "
        "sequence; up to the GPUs of one host",
    )


class ShardingConfig(Section):
    """Which mesh axes split which logical axis."""

    rules: dict[str, list[str] | str | None] = Field(
        default_factory=dict,
        description="overrides of the default rules, logical axis to mesh axes, e.g. {mlp: "
        "[tensor], embed: null}; docs/parallelism.md lists the defaults",
    )
    context_attention: Literal["auto", "ulysses", "ring"] = Field(
        "auto",
        description="attention over mesh.context. ulysses: heads are exchanged for length; ring: "
        "keys and values travel round; auto: ulysses where tensor x context divides the kv heads",
    )


class BlendEntry(Section):
    """One indexed dataset and its share of the samples."""

    prefix: Path = Field(description="path of the dataset without .bin/.idx")
    weight: PositiveFloat | None = Field(
        None,
        description="share of samples, relative to the others; null: 1 in epoch order, and what "
        "Megatron does without weights (one epoch of each) in megatron order",
    )


def _as_entries(value: object) -> object:
    """Let a blend be one prefix, a list of prefixes, or a list of {prefix, weight}."""
    if isinstance(value, str | Path):
        value = [value]
    if not isinstance(value, list):
        return value
    return [{"prefix": entry} if isinstance(entry, str | Path) else entry for entry in value]


Blend = Annotated[list[BlendEntry], BeforeValidator(_as_entries)]


class DataConfig(Section):
    """Which tokens the model sees, and in which order."""

    blend: Blend = Field(
        default_factory=list,
        description="indexed datasets (.bin/.idx): a prefix, a list of prefixes, or a list of "
        "{prefix, weight}; `split` divides each",
    )
    validation_blend: Blend | None = Field(
        None,
        description="separate validation datasets, written as `blend` is; then `blend` is used for "
        "training whole. null: validation is what `split` says",
    )
    split: str = Field(
        "99,1,0",
        description="relative shares of train, validation and test within each dataset of `blend`, "
        "by documents",
    )
    format: Literal["text", "chat"] = Field(
        "text",
        description="text: documents joined and cut into samples; chat: conversations from "
        "tools/preprocess_chat.py, whole ones packed into sequences and kept apart, loss on the "
        "answers only",
    )
    too_long: Literal["drop", "truncate"] = Field(
        "drop",
        description="with format=chat: whether a conversation longer than sequence_length is left "
        "out or cut at its end",
    )
    order: Literal["epoch", "megatron"] = Field(
        "epoch",
        description="epoch: an order that never changes when a run is extended; "
        "megatron: the samples Megatron-LM draws for the same seed, split, blend and length",
    )
    sequence_length: PositiveInt = Field(4096, description="tokens in one sample")
    seed: NonNegativeInt = Field(
        1234,
        description="seed of the sample order; another one reads the same data in another order",
    )
    eod_mask_loss: bool = Field(
        False, description="leave out the loss of the token that follows an end-of-document token"
    )
    eod_token: NonNegativeInt = Field(
        2, description="id of the end-of-document token; only eod_mask_loss looks at it"
    )
    index_cache: Path | None = Field(
        None, description="folder for sample indexes; null: `cache/dongwu_jax` beside the data"
    )
    tokenizer: Path | None = Field(
        None,
        description="tokenizer.model, tokenizer.json, or a folder with one of them, kept in every "
        "checkpoint and from there in exports; null: none",
    )
    accept_changes: bool = Field(
        False,
        description="go on with a run although its data differ from what the checkpoint recorded",
    )
    prefetch: PositiveInt = Field(4, description="global batches read ahead of the training step")


class TrainingConfig(Section):
    """How long and how large."""

    duration: Duration = Field(
        Duration(1000, "steps"),
        description="whole length of the run, from step 0: steps (1000), samples ('4.8M samples') "
        "or tokens ('12B tokens')",
    )
    global_batch_size: PositiveInt = Field(
        256, description="sequences in one optimizer step, over all devices"
    )
    micro_batch_size: PositiveInt = Field(
        1,
        description="sequences that one replica (one of data x fsdp) holds at once; the rest of the"
        " global batch is accumulated. Raise it as far as memory goes",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="seed of freshly initialised weights"
    )
    initial_weights: Path | None = Field(
        None,
        description="model to start from (Hugging Face, Meta or Megatron folder, GGUF file or our "
        "checkpoint); step and optimizer begin anew; null: fresh weights",
    )
    continue_from: Path | None = Field(
        None,
        description="Megatron checkpoint whose run goes on here: its weights, iteration, samples "
        "and, where they can be had, Adam moments; instead of initial_weights",
    )
    remat: Literal["none", "attention", "qkv_attention", "minimal", "full", "offload"] = Field(
        "none",
        description="what the backward pass recomputes, to save memory. none: nothing; minimal: "
        "only what is cheap (saves every matmul), where to begin; qkv_attention, "
        "attention: save only those; full: whole blocks; offload: as attention, in the "
        "host's memory (docs/performance.md: when it saves any)",
    )
    virtual_stages: PositiveInt = Field(
        1,
        description="pieces of the layers on every pipeline stage: more make the idle time (bubble)"
        " smaller and the messages more frequent; pipe x virtual_stages must divide the"
        " layers",
    )
    pipeline_micro_batches: PositiveInt | None = Field(
        None,
        description="micro batches that are in the pipeline together, a multiple of mesh.pipe; "
        "null: all of a step. More make the idle time smaller and need more memory",
    )
    scan_layers: bool = Field(
        False, description="compile one block and loop over it: compiles faster, runs slower"
    )
    deterministic: bool = Field(
        False,
        description="on GPUs, only kernels that always give the same bits: a run repeats exactly, "
        "more slowly (docs/operations.md); on CPUs they do anyway",
    )
    compilation_cache: bool = Field(
        True,
        description="on GPUs, keep compiled programs beside the checkpoints, so that a restart "
        "need not compile; a folder in JAX_COMPILATION_CACHE_DIR wins",
    )
    loss_chunk_tokens: NonNegativeInt = Field(
        0,
        description="positions of each sequence whose logits exist at once; 0: all. "
        "Use 1024 or so with long sequences and large vocabularies",
    )


class OptimizerConfig(Section):
    """AdamW."""

    learning_rate: PositiveFloat = Field(
        3e-4, description="peak learning rate; `schedule` says how it gets there and falls"
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="decay of the first moment, the average of gradients"
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.95, description="decay of the second moment, the average of their squares"
    )
    epsilon: PositiveFloat = Field(1e-8, description="added to the root of the second moment")
    weight_decay: NonNegativeFloat = Field(
        0.1, description="decoupled decay of matrices; norms and biases are never decayed"
    )
    clip_norm: PositiveFloat | None = Field(
        1.0,
        description="gradients whose norm over all weights is larger are scaled down to this norm; "
        "null: no clipping",
    )
    first_moment_dtype: Literal["bfloat16", "float32"] = Field(
        "float32",
        description="format in which Adam keeps the average of the gradients; bfloat16 saves 2 "
        "bytes a parameter",
    )


class ScheduleConfig(Section):
    """The learning rate over the run."""

    type: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "cosine",
        description="shape after warm-up. constant: stays at optimizer.learning_rate; linear, "
        "cosine: falls to min_learning_rate; wsd: stays, then falls linearly at the end"
        " of the run",
    )
    warmup: Duration = Field(
        Duration(0, "steps"),
        description="length of the linear rise from 0: steps, samples or tokens, as "
        "training.duration; 0: none",
    )
    decay: Duration | None = Field(
        None,
        description="linear, cosine: length from step 0 to the lowest rate; null: the whole run. "
        "wsd: length of the final decay; null: a tenth of the run",
    )
    min_learning_rate: NonNegativeFloat = Field(
        0.0, description="rate at the end of the decay; constant never reaches it"
    )


class PrecisionConfig(Section):
    """Number formats. Master weights are always float32."""

    compute_dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="format of activations and matrix products"
    )
    grad_reduce_dtype: Literal["bfloat16", "float32"] = Field(
        "float32",
        description="format in which gradients are summed over devices; bfloat16 halves the bytes",
    )
    grad_accumulation_dtype: Literal["bfloat16", "float32"] = Field(
        "float32",
        description="format in which gradients of micro batches add up; bfloat16 saves 2 bytes a "
        "parameter and loses small contributions",
    )
    attention: Literal["auto", "cudnn", "xla"] = Field(
        "auto",
        description="attention kernel; auto: cudnn on GPU where it can, else xla; cudnn is an error"
        " where it cannot",
    )
    matmul: Literal["compute_dtype", "fp8"] = Field(
        "compute_dtype",
        description="format of the operands of the blocks' matrix products; fp8 (Hopper and newer) "
        "scales each tensor by its present maximum, e4m3 forward, e5m2 for gradients. The head "
        "always works in compute_dtype",
    )
    fp8_skip_first: NonNegativeInt = Field(
        0, description="with matmul=fp8: first blocks that stay in compute_dtype"
    )
    fp8_skip_last: NonNegativeInt = Field(
        0, description="with matmul=fp8: last blocks that stay in compute_dtype"
    )


class CheckpointConfig(Section):
    """What is kept, where and how often."""

    directory: Path = Field(
        Path("runs/default/checkpoints"),
        description="folder of this run's checkpoints; a run that is in it already is resumed",
    )
    interval: PositiveInt = Field(500, description="steps between checkpoints")
    keep_last: PositiveInt = Field(3, description="number of newest checkpoints that are kept")
    keep_every: PositiveInt | None = Field(
        None,
        description="also keep for ever each checkpoint whose step is a multiple of this; null: "
        "none",
    )
    asynchronous: bool = Field(True, description="write while training goes on")


class LoggingConfig(Section):
    """What is reported."""

    interval: PositiveInt = Field(1, description="steps between reported metrics")
    directory: Path | None = Field(
        None, description="folder of metrics.jsonl and TensorBoard files; null: beside checkpoints"
    )
    tensorboard: bool = Field(True, description="write TensorBoard event files")
    wandb_project: str | None = Field(
        None, description="Weights & Biases project; null: off (needs the `wandb` extra)"
    )
    prometheus_port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        None,
        description="port at which the first process offers its metrics to Prometheus; null: off "
        "(needs the `prometheus` extra)",
    )
    prometheus_address: str = Field(
        "127.0.0.1",
        description="address to listen on; 0.0.0.0: all, for a Prometheus on another machine. "
        "Whoever reaches it can read the metrics",
    )
    flops_convention: Literal["V1", "V2", "V3"] = Field(
        "V3",
        description="how FLOPs are counted: V1 and V2 as Megatron-LM of 2023 and 2024 (full "
        "attention), V3 as of 2025 (causal attention counted once)",
    )
    peak_tflops: PositiveFloat | None = Field(
        None,
        description="dense bf16 peak of one device in TFLOP/s, of which MFU is a share; null: "
        "looked up by device name",
    )


class EvaluationConfig(Section):
    """Loss on the validation split during training."""

    interval: NonNegativeInt = Field(0, description="steps between evaluations; 0: never")
    batches: PositiveInt = Field(
        10, description="global batches of validation data in one evaluation"
    )
