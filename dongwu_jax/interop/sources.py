"""Opening a model, whatever holds it."""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.gguf import GgufSource
from dongwu_jax.interop.hf import HuggingFaceSource, is_hugging_face_folder
from dongwu_jax.interop.megatron.distributed import TorchDistSource, is_distributed_checkpoint
from dongwu_jax.interop.megatron.folders import find_iteration_folder, is_megatron_checkpoint
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.meta import MetaSource, is_meta_folder
from dongwu_jax.interop.model_source import ModelSource
from dongwu_jax.training.checkpoints.folders import is_checkpoint


def open_source(path: Path | str, base_weights: Path | None = None) -> ModelSource:
    """Open a model, detecting what holds it.

    Args:
        base_weights: the model that adapters in `path` were trained on, if it is not where the run
            found it.

    Raises:
        UserError: there is no model at `path`, or it is damaged or unsupported; or `base_weights`
            is given, and it holds no adapters.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if base_weights is not None and not is_checkpoint(path):
        raise _no_adapters(path, base_weights)
    if path.is_file() and path.suffix == ".gguf":
        return GgufSource(path)
    if is_hugging_face_folder(path) and not is_megatron_checkpoint(path):
        return HuggingFaceSource(path)
    if is_meta_folder(path):
        return MetaSource(path)
    if is_megatron_checkpoint(path):
        distributed = is_distributed_checkpoint(find_iteration_folder(path).path)
        return TorchDistSource(path) if distributed else MegatronSource(path)
    if is_checkpoint(path):
        return _open_checkpoint(path, base_weights)
    raise UserError(
        f"{path}: is not a model: expected a Hugging Face folder (config.json), a .gguf file, a "
        "Meta folder (params.json), a Megatron checkpoint (latest_checkpointed_iteration.txt, or "
        "one of its iteration folders), or a checkpoint folder of ours"
    )


def _open_checkpoint(path: Path, base_weights: Path | None) -> ModelSource:
    # Loads JAX and Orbax, which no other format needs.
    from dongwu_jax.interop.adapter_source import MergedSource, base_weights_of
    from dongwu_jax.interop.checkpoint_source import CheckpointSource
    from dongwu_jax.training.checkpoints.stored_weights import WeightReader

    weights = WeightReader(path)
    if not weights.run.lora.rank:
        if base_weights is not None:
            raise _no_adapters(path, base_weights)
        return CheckpointSource(path, weights)
    origin = base_weights_of(weights.run, path, base_weights)
    return MergedSource(path, weights, open_source(origin), origin)


def _no_adapters(path: Path, base_weights: Path) -> UserError:
    return UserError(
        f"--base-weights {base_weights}: {path} holds no adapters, but weights of its own; leave "
        "the flag out"
    )


_FILES_OF_MODELS = re.compile(
    r"(config|generation_config|params|tokenizer\w*|special_tokens_map|added_tokens|vocab"
    r"|[\w.-]+\.index)\.json|merges\.txt|[\w.-]+\.(safetensors|bin|pth|model|jinja)"
    r"|latest_checkpointed_iteration\.txt|README\.md|LICENSE\S*|\.gitattributes|tokenizer"
)
_SAVED_STATES = re.compile(r"iter_\d+|release|\d+")


def holds_one_model(path: Path) -> bool:
    """Whether a folder holds a model with weights and nothing else, so that it may be overwritten.

    The many iterations of a run are more than a model.
    """
    names = [entry.name for entry in path.iterdir()]
    states = [name for name in names if _SAVED_STATES.fullmatch(name)]
    others = [name for name in names if name not in states]
    if len(states) > 1 or not all(map(_FILES_OF_MODELS.fullmatch, others)):
        return False
    weights = ("*.safetensors", "pytorch_model*.bin")
    if is_hugging_face_folder(path) and any(next(path.glob(name), None) for name in weights):
        return True
    return is_meta_folder(path) or is_megatron_checkpoint(path) or is_checkpoint(path)


CORRECTABLE = ("max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling_factor")


def correct_config(
    source: ModelSource, true_vocab_size: int | None, settings: Mapping[str, float]
) -> None:
    """Set what the source's files do not say, or say wrongly; tensors keep their shapes.

    Args:
        true_vocab_size: rows of the vocabulary that are tokens; the rest is padding.
        settings: values by name, out of `CORRECTABLE`; a rope_scaling_factor of 1 means none.

    Raises:
        UserError: the vocabulary has fewer rows, or a value is impossible.
    """
    config = source.config
    changes: dict[str, object] = dict(settings)
    if "rope_scaling_factor" in settings:
        factor = changes.pop("rope_scaling_factor")
        changes["rope_scaling"] = None if factor == 1 else {"type": "linear", "factor": factor}
    if true_vocab_size is not None:
        if true_vocab_size > config.vocab_rows:
            raise UserError(
                f"true vocabulary size {true_vocab_size}: the model has only "
                f"{config.vocab_rows} rows"
            )
        changes |= {"vocab_size": true_vocab_size, "padded_vocab_size": config.vocab_rows}
    try:
        source.config = ModelConfig.model_validate(config.model_dump() | changes)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"--set {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
