"""Convert small models Hugging Face -> Megatron -> Hugging Face in every layout; compare the bytes.

Example:
    python benchmarks/round_trips.py

Prints a table for each kind of model; a cell counts the layouts, out of pipeline 1, 2, 4 x virtual
stages 1, 2, whose model.safetensors came back with every byte as it was. Exits with 1 if one did
not.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.conversion import TargetOptions, convert, make_target
from dongwu_jax.interop.hf_export import HuggingFaceTarget
from dongwu_jax.interop.megatron.tensors import NAMINGS, Naming
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.tensors import model_tensors

TENSOR_PARALLEL = (1, 2, 4, 8)
STAGES = [(pipeline, virtual) for pipeline in (1, 2, 4) for virtual in (1, 2)]
VOCAB_SIZE = 60  # not a multiple of the ranks: padded there, cut again on the way back
KINDS: dict[str, dict[str, int | bool]] = {
    "MHA, untied": {},
    "MHA, tied": {"tie_word_embeddings": True},
    "GQA, untied": {"num_kv_heads": 8},
    "GQA, tied": {"num_kv_heads": 8, "tie_word_embeddings": True},
}


def main(command_line: list[str] | None = None) -> int:
    """Go through all kinds, namings and layouts."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(command_line)
    wrong = 0
    for kind, settings in KINDS.items():
        table = Table("naming", *(f"T={ranks}" for ranks in TENSOR_PARALLEL), title=kind)
        for naming in NAMINGS:
            if naming == "megatron_llama" and settings:  # has neither GQA nor tied embeddings
                continue
            equal = [count_equal(settings, naming, ranks) for ranks in TENSOR_PARALLEL]
            wrong += sum(len(STAGES) - count for count in equal)
            table.add_row(naming, *(f"{count} of {len(STAGES)}" for count in equal))
        Console().print(table)
    return 1 if wrong else 0


def count_equal(settings: dict[str, int | bool], naming: Naming, tensor_parallel: int) -> int:
    """How many pipelines give a model back with every byte of its weights as it was."""
    with tempfile.TemporaryDirectory(prefix="round-trips-") as place:
        folder = Path(place)
        make_model(folder / "hf", settings)
        return sum(
            _comes_back(folder, naming, tensor_parallel, pipeline, virtual)
            for pipeline, virtual in STAGES
        )


def make_model(folder: Path, settings: dict[str, int | bool]) -> None:
    """A random bfloat16 model of 8 layers in a Hugging Face folder."""
    config = ModelConfig.model_validate(
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_layers": 8,
            "num_heads": 16,
            "max_position_embeddings": 64,
            **settings,
        }
    )
    generator = np.random.default_rng(0)
    weights = {
        tensor.name: generator.standard_normal(tensor.shape).astype(ml_dtypes.bfloat16)
        for tensor in model_tensors(config)
    }
    folder.mkdir()
    HuggingFaceTarget(config, "bfloat16").write(folder, weights.__getitem__, lambda num_bytes: None)


def _comes_back(
    folder: Path, naming: Naming, tensor_parallel: int, pipeline: int, virtual: int
) -> bool:
    megatron, again = folder / f"megatron-{pipeline}-{virtual}", folder / f"hf-{pipeline}-{virtual}"
    options = TargetOptions(
        "megatron",
        naming=naming,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline,
        virtual_pipeline=virtual,
        vocab_divisible_by=16,
    )
    source = open_source(folder / "hf")
    convert(source, megatron, make_target(source, options))
    back = open_source(megatron)
    back.config = back.config.model_copy(
        update={"vocab_size": VOCAB_SIZE, "padded_vocab_size": back.config.vocab_rows}
    )
    convert(back, again, make_target(back, TargetOptions("hf")))
    names = ("model.safetensors", "config.json")
    return all((again / name).read_bytes() == (folder / "hf" / name).read_bytes() for name in names)


if __name__ == "__main__":
    sys.exit(main())
