"""The tokenizer files of an exported Hugging Face folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from dongwu_jax.data.tokenizers import load_tokenizer, sentencepiece_file, tokenizer_files
from dongwu_jax.input_files import read_json_object
from dongwu_jax.interop.sentencepiece_bpe import convert_sentencepiece


def write_hugging_face_tokenizer(source: Path, folder: Path, max_length: int) -> None:
    """Write what `transformers.AutoTokenizer.from_pretrained(folder)` needs.

    A `tokenizer.json` is copied with its companions; a SentencePiece model is converted, and kept
    beside the conversion as `tokenizer.model`.

    Args:
        source: a `.model` file, a `tokenizer.json`, or a folder with either.
        max_length: `model_max_length`, in tokens.

    Raises:
        UserError: there is no tokenizer at `source`, or it cannot be expressed.
    """
    files = tokenizer_files(source)
    if any(file.name == "tokenizer.json" for file in files):
        for file in files:
            shutil.copyfile(file, folder / file.name)
        config = folder / "tokenizer_config.json"
        settings = read_json_object(config) if config.is_file() else fast_tokenizer_settings()
    else:
        settings = _convert_sentencepiece(sentencepiece_file(source), folder)
    settings["model_max_length"] = max_length
    _write_json(folder / "tokenizer_config.json", settings)


def _convert_sentencepiece(model: Path, folder: Path) -> dict[str, Any]:
    shutil.copyfile(model, folder / "tokenizer.model")
    converted = convert_sentencepiece(model)
    converted.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(model)
    ids = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "unk_token": converted.token_to_id(converted.model.unk_token),
        "pad_token": tokenizer.pad_id,
    }
    named = {name: converted.id_to_token(id) for name, id in ids.items() if id is not None}
    return fast_tokenizer_settings() | named | {"add_bos_token": tokenizer.bos_id is not None}


def fast_tokenizer_settings() -> dict[str, Any]:
    """The `tokenizer_config.json` of a bare `tokenizer.json`."""
    return {
        # Not LlamaTokenizer: transformers 5 rebuilds that from the vocabulary, without normalizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        # By default transformers 4 adds token_type_ids, which a Llama's generate() refuses.
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
