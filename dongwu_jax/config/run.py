"""The whole run, and the checks that involve more than one section."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dongwu_jax.config.distillation import DistillationConfig
from dongwu_jax.config.faults import BadStepsConfig, GuardsConfig
from dongwu_jax.config.lora import LoraConfig
from dongwu_jax.config.model import ModelConfig
from dongwu_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    MeshConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
    Section,
    ShardingConfig,
    TrainingConfig,
)


class RunConfig(Section):
    """Everything `python -m dongwu_jax.train` needs to know."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    sharding: ShardingConfig = Field(default_factory=ShardingConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    guards: GuardsConfig = Field(default_factory=GuardsConfig)
    bad_steps: BadStepsConfig = Field(default_factory=BadStepsConfig)
    distillation: DistillationConfig = Field(default_factory=DistillationConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)

    @model_validator(mode="after")
    def _check_across_sections(self) -> "RunConfig":
        model, data, optimizer, training = self.model, self.data, self.optimizer, self.training
        if training.initial_weights is not None and training.continue_from is not None:
            raise ValueError(
                f"training.initial_weights={training.initial_weights} and training.continue_from="
                f"{training.continue_from} are both set; keep initial_weights to start a new run "
                "from these weights, or continue_from to go on with a Megatron run"
            )
        # What initial weights bring is checked once they are there, in the resolved run.
        from_weights = training.initial_weights is not None or training.continue_from is not None
        known = model.model_fields_set if from_weights else type(model).model_fields.keys()
        if (
            "max_position_embeddings" in known
            and data.sequence_length > model.max_position_embeddings
        ):
            raise ValueError(
                f"data.sequence_length={data.sequence_length} is longer than "
                f"model.max_position_embeddings={model.max_position_embeddings}; raise the latter, "
                "or set model.rope_scaling to extend the context"
            )
        if data.eod_mask_loss and "vocab_size" in known and data.eod_token >= model.vocab_size:
            raise ValueError(
                f"data.eod_token={data.eod_token} is not below model.vocab_size={model.vocab_size}"
            )
        if self.schedule.min_learning_rate > optimizer.learning_rate:
            raise ValueError(
                f"schedule.min_learning_rate={self.schedule.min_learning_rate} is above "
                f"optimizer.learning_rate={optimizer.learning_rate}"
            )
        if training.loss_chunk_tokens and data.sequence_length % training.loss_chunk_tokens:
            raise ValueError(
                f"data.sequence_length={data.sequence_length} is not a multiple of "
                f"training.loss_chunk_tokens={training.loss_chunk_tokens}"
            )
        self._check_schedule()
        self._check_precision()
        self._check_chat()
        self._check_lora()
        if self.distillation.hidden_weight and training.continue_from is not None:
            raise ValueError(
                f"distillation.hidden_weight={self.distillation.hidden_weight}: a Megatron run "
                "knows no moments of the projection that it learns; start with "
                "training.initial_weights instead of continue_from"
            )
        if self.steps < 1:
            raise ValueError(
                f"training.duration={training.duration} is shorter than one step; lengthen it"
            )
        return self

    def _check_chat(self) -> None:
        """Packed conversations need a mask that not every layout knows."""
        if self.data.format != "chat":
            return
        for setting, value, only in (
            ("data.order", self.data.order, "epoch"),
            ("mesh.pipe", self.mesh.pipe, 1),
            ("mesh.context", self.mesh.context, 1),
            ("data.eod_mask_loss", self.data.eod_mask_loss, False),
            ("distillation.cache", self.distillation.cache, None),
        ):
            if value != only:
                raise ValueError(
                    f"{setting}={value} with data.format=chat: conversations are packed, which it "
                    f"does not know; leave it at {only}"
                )

    def _check_lora(self) -> None:
        """Adapters need weights beneath them, and a step that knows them."""
        lora, usual = self.lora, LoraConfig()
        if lora.rank is None:
            for name in ("alpha", "targets"):
                value = getattr(lora, name)
                if value != getattr(usual, name):
                    raise ValueError(
                        f"lora.{name}={value} means something only with lora.rank; set it, or "
                        f"leave lora.{name} out"
                    )
            return
        if self.training.initial_weights is None:
            raise ValueError(
                f"lora.rank={lora.rank}: adapters are of a model; name its weights in "
                "training.initial_weights"
            )
        for setting, value, only in (
            ("mesh.pipe", self.mesh.pipe, 1),
            ("precision.matmul", self.precision.matmul, "compute_dtype"),
            ("distillation.hidden_weight", self.distillation.hidden_weight, 0.0),
        ):
            if value != only:
                raise ValueError(
                    f"{setting}={value} with lora.rank={lora.rank}: adapters cannot be trained so; "
                    f"leave it at {only}"
                )

    def _check_precision(self) -> None:
        """8-bit products work on bfloat16, and blocks differ only where they are apart."""
        precision, pipe = self.precision, self.mesh.pipe
        if pipe > 1 and precision.grad_accumulation_dtype != "float32":
            raise ValueError(
                f"precision.grad_accumulation_dtype={precision.grad_accumulation_dtype} with "
                f"mesh.pipe={pipe}: a pipeline adds up in float32"
            )
        if precision.matmul == "fp8" and precision.compute_dtype != "bfloat16":
            raise ValueError(
                f"precision.matmul=fp8 needs precision.compute_dtype=bfloat16, not "
                f"{precision.compute_dtype}"
            )
        skipped = precision.fp8_skip_first + precision.fp8_skip_last
        if not skipped:
            return
        setting = (
            f"precision.fp8_skip_first={precision.fp8_skip_first} and "
            f"fp8_skip_last={precision.fp8_skip_last}"
        )
        if precision.matmul != "fp8":
            raise ValueError(f"{setting} mean something only with precision.matmul=fp8")
        if self.training.scan_layers or pipe > 1:
            raise ValueError(
                f"{setting}: with training.scan_layers or mesh.pipe > 1 one program computes all "
                "blocks; set them to 0"
            )
        if skipped >= self.model.num_layers:
            raise ValueError(f"{setting}: no block is left of {self.model.num_layers}")

    def _check_schedule(self) -> None:
        """An explicit decay must leave room for the warm-up."""
        batch, length = self.training.global_batch_size, self.data.sequence_length
        warmup, decay = self.schedule.warmup, self.schedule.decay
        if decay is None:
            return
        spent = warmup.in_samples(batch, length)
        lasting = decay.in_samples(batch, length)
        whole = self.training.duration.in_samples(batch, length)
        if self.schedule.type == "wsd" and spent + lasting > whole:
            raise ValueError(
                f"schedule.warmup={warmup} and schedule.decay={decay} are together longer than "
                f"training.duration={self.training.duration}"
            )
        if self.schedule.type in ("linear", "cosine") and lasting <= spent:
            raise ValueError(
                f"schedule.decay={decay} ends before schedule.warmup={warmup} does; lengthen it"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.training.duration.in_steps(
            self.training.global_batch_size, self.data.sequence_length
        )

    @property
    def log_directory(self) -> Path:
        """Where metrics, events and TensorBoard files go."""
        return self.logging.directory or self.checkpoint.directory.parent

    def mesh_shape(self, device_count: int) -> dict[str, int]:
        """Size of every mesh axis on `device_count` devices.

        Raises:
            ValueError: the axes do not multiply to the number of devices.
        """
        sizes = self.mesh.model_dump()
        if sizes["data"] == -1:
            others = sizes["pipe"] * sizes["fsdp"] * sizes["context"] * sizes["tensor"]
            if device_count % others:
                raise ValueError(
                    f"mesh: pipe x fsdp x context x tensor = {others} does not divide the "
                    f"{device_count} devices; lower one of them"
                )
            sizes["data"] = device_count // others
        product = 1
        for size in sizes.values():
            product *= size
        if product != device_count:
            axes = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise ValueError(
                f"mesh: {axes} = {product} devices, not {device_count}; "
                "change one axis, or leave data at -1 to take what is left"
            )
        return sizes

    def check_devices(self, device_count: int) -> None:
        """Check what must divide what on this many devices.

        Raises:
            ValueError: a combination is impossible; the message names both numbers.
        """
        shape = self.mesh_shape(device_count)
        model, training = self.model, self.training
        shards = shape["fsdp"] * shape["context"] * shape["pipe"]
        for logical_axis, mesh_axis, parts, name, size in (
            ("heads", "tensor", shape["tensor"], "model.num_heads", model.num_heads),
            ("kv_heads", "tensor", shape["tensor"], "model.num_kv_heads", model.kv_heads),
            ("mlp", "tensor", shape["tensor"], "model.intermediate_size", model.intermediate_size),
            (
                "vocab",
                "tensor",
                shape["tensor"],
                "model.padded_vocab_size (or vocab_size)",
                model.vocab_rows,
            ),
            ("embed", "fsdp x context x pipe", shards, "model.hidden_size", model.hidden_size),
        ):
            # A rule of the user's own is checked where the arrays are laid out.
            if logical_axis not in self.sharding.rules and size % parts:
                way_out = f", or do not split it: sharding.rules.{logical_axis}=null"
                if logical_axis == "kv_heads" and shape["context"] > 1:
                    way_out = ""  # there, all heads of a device come from devices that have them
                raise ValueError(
                    f"{name}={size} is not divisible by mesh.{mesh_axis}={parts}; "
                    f"change one of them{way_out}"
                )
        replicas = shape["data"] * shape["fsdp"]
        rows = training.micro_batch_size * replicas
        if training.global_batch_size % rows:
            raise ValueError(
                f"training.global_batch_size={training.global_batch_size} is not a multiple of "
                f"micro_batch_size={training.micro_batch_size} x data-parallel replicas="
                f"{replicas} (data {shape['data']} x fsdp {shape['fsdp']})"
            )
        self._check_sequence(device_count)
        self._check_pipeline(device_count)

    def accumulation_steps(self, device_count: int) -> int:
        """Micro batches per optimizer step."""
        shape = self.mesh_shape(device_count)
        rows = self.training.micro_batch_size * shape["data"] * shape["fsdp"]
        return self.training.global_batch_size // rows

    def pipeline_micro_batches(self, device_count: int) -> int:
        """Micro batches that are in the pipeline together."""
        return self.training.pipeline_micro_batches or self.accumulation_steps(device_count)

    def context_attention(self, device_count: int) -> Literal["ulysses", "ring"]:
        """How attention reaches over the shards of a sequence; ulysses where there is one."""
        chosen = self.sharding.context_attention
        if chosen != "auto":
            return chosen
        return "ring" if self._uneven_heads(device_count) else "ulysses"

    def _uneven_heads(self, device_count: int) -> bool:
        shape = self.mesh_shape(device_count)
        tensor = shape["tensor"] if self._splits_kv_heads else 1
        return shape["context"] > 1 and bool(self.model.kv_heads % (tensor * shape["context"]))

    @property
    def _splits_kv_heads(self) -> bool:
        """Whether `tensor` splits the key/value heads, as it does unless a rule changes that."""
        return self.sharding.rules.get("kv_heads", "tensor") in ("tensor", ["tensor"])

    def _check_sequence(self, device_count: int) -> None:
        """The sequence must divide among the devices that share it."""
        shape = self.mesh_shape(device_count)
        context, tensor, length = shape["context"], shape["tensor"], self.data.sequence_length
        if self._uneven_heads(device_count) and self.sharding.context_attention == "ulysses":
            raise ValueError(
                f"sharding.context_attention=ulysses: mesh.tensor={tensor} x mesh.context={context}"
                f" does not divide the {self.model.kv_heads} key/value heads; use ring"
            )
        if context > 1 and tensor > 1 and not self._splits_kv_heads:
            raise ValueError(
                "sharding.rules.kv_heads cannot be changed where mesh.context > 1 and "
                "mesh.tensor > 1; lower mesh.tensor to a divisor of model.num_kv_heads"
            )
        parts = context * (2 if self.context_attention(device_count) == "ring" else 1)
        if length % parts:
            raise ValueError(
                f"data.sequence_length={length} is not divisible by {parts} parts (mesh.context="
                f"{context}{', two each for ring attention' if parts > context else ''})"
            )
        chunk, own = self.training.loss_chunk_tokens, length // context
        if chunk and chunk < own and own % chunk:
            raise ValueError(
                f"training.loss_chunk_tokens={chunk} does not divide the {own} positions of a "
                f"sequence that lie on one device (data.sequence_length={length}, mesh.context="
                f"{context})"
            )
        if "residual_length" not in self.sharding.rules and length % (context * tensor):
            raise ValueError(
                f"data.sequence_length={length} is not divisible by mesh.context={context} x "
                f"mesh.tensor={tensor}, which split it between blocks; change one of them, or let "
                "tensor leave it whole: sharding.rules.residual_length=[context]"
            )

    def _check_pipeline(self, device_count: int) -> None:
        """Layers and micro batches must divide among the stages."""
        stages = self.mesh_shape(device_count)["pipe"]
        training, layers = self.training, self.model.num_layers
        if stages == 1:
            for name in ("virtual_stages", "pipeline_micro_batches"):
                if getattr(training, name) not in (None, 1):
                    raise ValueError(
                        f"training.{name}={getattr(training, name)} means something only with "
                        "mesh.pipe > 1"
                    )
            return
        if training.scan_layers:
            raise ValueError(
                "training.scan_layers=true: a pipeline loops over micro batches, not over layers; "
                "leave it out, or set mesh.pipe=1"
            )
        pieces = stages * training.virtual_stages
        if layers % pieces:
            raise ValueError(
                f"model.num_layers={layers} is not divisible by mesh.pipe={stages} x "
                f"training.virtual_stages={training.virtual_stages}"
            )
        steps, together = (
            self.accumulation_steps(device_count),
            self.pipeline_micro_batches(device_count),
        )
        if together % stages:
            field = (
                "training.pipeline_micro_batches"
                if training.pipeline_micro_batches
                else "training.global_batch_size / (micro_batch_size x data x fsdp)"
            )
            raise ValueError(f"{field}={together} is not a multiple of mesh.pipe={stages}")
        if steps % together:
            raise ValueError(
                f"training.pipeline_micro_batches={together} does not divide the {steps} micro "
                "batches of a step"
            )
