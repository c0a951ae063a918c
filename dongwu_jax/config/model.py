"""The architecture of a model: every size, its default and its meaning."""

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.config.section import Section


class ModelConfig(Section):
    """The architecture: a Llama decoder."""

    vocab_size: PositiveInt = Field(32000, description="number of tokens that the tokenizer knows")
    padded_vocab_size: PositiveInt | None = Field(
        None,
        description="rows of the embedding and the head; null: vocab_size. Megatron pads to a "
        "multiple of 128 x tensor-parallel size; pad when `tensor` must divide the rows",
    )
    padded_vocab_in_softmax: bool = Field(
        False,
        description="whether padding rows take part in the loss, as they do in Megatron; "
        "false masks them, so that the loss does not depend on the padding",
    )
    hidden_size: PositiveInt = Field(4096, description="width of the residual stream")
    intermediate_size: PositiveInt = Field(11008, description="width of the SwiGLU feed-forward")
    num_layers: PositiveInt = Field(32, le=10_000, description="number of decoder blocks")
    num_heads: PositiveInt = Field(32, description="number of query heads")
    num_kv_heads: PositiveInt | None = Field(
        None, description="number of key/value heads (GQA); null: num_heads (MHA)"
    )
    head_dim: PositiveInt | None = Field(
        None, description="width of one head; null: hidden_size / num_heads"
    )
    max_position_embeddings: PositiveInt = Field(
        4096,
        description="longest sequence the model is meant for, in tokens; bounds "
        "data.sequence_length",
    )
    rms_norm_eps: PositiveFloat = Field(
        1e-5, description="added to the mean square in every RMSNorm"
    )
    rope_theta: PositiveFloat = Field(
        10000.0,
        description="base of the rotary frequencies; of a trained model, the one that it was "
        "trained with",
    )
    rope_scaling: RopeScaling | None = Field(
        None,
        description="stretches positions to a context longer than the model was trained on; null: "
        "none",
    )
    tie_word_embeddings: bool = Field(
        False, description="use the embedding matrix as the output head"
    )
    qkv_bias: bool = Field(
        False, description="add a bias to query, key and value projections, as Qwen2 has"
    )
    initializer_range: PositiveFloat = Field(
        0.02, description="standard deviation of freshly initialised weights"
    )
    teacher_hidden_size: PositiveInt | None = Field(
        None,
        description="leave it out: it is filled in where distillation.hidden_weight is set. Width "
        "of a teacher's hidden states, to which this model's are projected while it "
        "learns; no part of exports",
    )

    @model_validator(mode="after")
    def _check_shape(self) -> "ModelConfig":
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.kv_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}; "
                "set head_dim, or change one of them"
            )
        if self.width_per_head % 2:
            raise ValueError(
                f"head_dim={self.width_per_head} is odd; rotary embeddings need an even head_dim"
            )
        scaling = self.rope_scaling
        if scaling and scaling.type == "ntk" and self.width_per_head == 2:
            raise ValueError("rope_scaling.type=ntk needs heads wider than 2")
        if scaling and scaling.original_max_position_embeddings:
            original = scaling.original_max_position_embeddings
            if original > self.max_position_embeddings:
                raise ValueError(
                    f"rope_scaling.original_max_position_embeddings={original} is above "
                    f"max_position_embeddings={self.max_position_embeddings}, the extended length"
                )
        if self.vocab_rows < self.vocab_size:
            raise ValueError(
                f"padded_vocab_size={self.vocab_rows} is smaller than vocab_size={self.vocab_size}"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def width_per_head(self) -> int:
        """Width of one head, resolved."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and head matrices, padding included."""
        return self.padded_vocab_size or self.vocab_size
