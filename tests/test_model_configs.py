"""The shipped configurations: sizes, layouts, recipes and vocabulary variants of real models."""

import re
from pathlib import Path

import jax
import pytest
import yaml
from command_lines import exit_code

from dongwu_jax import train
from dongwu_jax.config import RunConfig, load_config
from dongwu_jax.config.loading import parse_config
from dongwu_jax.models.parameters import (
    abstract_parameters,
    parameter_count,
    parameter_shardings,
)
from dongwu_jax.parallel.mesh import MESH_AXES
from dongwu_jax.parallel.sharding import LogicalSharding, resolve_rules

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EVERY_FILE = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
MODELS = ("7b", "13b", "extend_13b_32k", "31b", "65b", "132b")
RUNS = [f"{model}{layout}" for model in MODELS for layout in ("", "_a100", "_h100")]
VARIANTS = [f"vocab125696/{run}" for run in RUNS]

# N = L (2 n d h + 2 g d h + 3 h f + 2 h) + h + 2 V h, as published for these architectures.
COUNTS = {
    "7b": {32_000: 6_738_415_616, 125_696: 7_505_973_248},
    "13b": {32_000: 13_015_864_320, 125_696: 13_975_311_360},
    "extend_13b_32k": {32_000: 13_015_864_320, 125_696: 13_975_311_360},
    "31b": {32_000: 29_497_040_896, 125_696: 31_032_156_160},
    "65b": {32_000: 64_908_173_312, 125_696: 66_443_288_576},
    "132b": {32_000: 131_247_845_376, 125_696: 133_550_518_272},
}
# devices, mesh (pipe, data, tensor), micro batch
ORIGINAL = {
    "extend_13b_32k": (32, (1, 4, 8), 1),
    "31b": (32, (2, 2, 8), 12),
    "65b": (32, (4, 1, 8), 4),
    "132b": (64, (8, 1, 8), 3),
}


def load(name: str) -> RunConfig:
    return load_config(CONFIGS / f"{name}.yaml")


def model_of(name: str) -> str:
    return re.sub(r"(_a100|_h100)$", "", Path(name).name)


def devices_of(name: str) -> int:
    """The cluster that a run's first line names."""
    first_line = (CONFIGS / f"{Path(name).name}.yaml").read_text("utf-8").splitlines()[0]
    found = re.search(r"on (\d+) GPUs", first_line)
    assert found, first_line
    return int(found[1])


@pytest.mark.parametrize("file", EVERY_FILE)
def test_every_file_loads_and_prints(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(CONFIGS / file)
    if config.training.initial_weights is None:  # else the architecture comes with the weights
        assert exit_code(train.main, "--config", CONFIGS / file, "--print-config") == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert parse_config(printed, source=file) == config


def test_every_run_is_there_with_its_variant() -> None:
    top = {f"{run}.yaml" for run in RUNS}
    assert top <= set(EVERY_FILE)
    assert {file for file in EVERY_FILE if file.startswith("vocab125696/")} == {
        f"vocab125696/{file}" for file in top
    }


@pytest.mark.parametrize("model", [model for model in MODELS if model != "extend_13b_32k"])
def test_the_architecture_alone_has_the_published_size(model: str) -> None:
    config = load(f"models/{model}")
    assert parameter_count(abstract_parameters(config.model)) == COUNTS[model][32_000]


@pytest.mark.parametrize("name", RUNS + VARIANTS)
def test_parameter_counts(name: str) -> None:
    model = load(name).model
    padding_rows = model.vocab_rows - model.vocab_size
    expected = COUNTS[model_of(name)][model.vocab_size] + 2 * padding_rows * model.hidden_size
    assert parameter_count(abstract_parameters(model)) == expected
    assert model.width_per_head == 128


@pytest.mark.parametrize("name", RUNS)
def test_a_variant_differs_in_vocabulary_and_folder_alone(name: str) -> None:
    run, variant = load(name), load(f"vocab125696/{name}")
    assert (variant.model.vocab_size, variant.model.padded_vocab_size) == (125_696, 125_952)
    assert variant.model.vocab_rows % (8 * 128) == 0
    folder = Path(f"runs/{model_of(name)}_vocab125696/checkpoints")
    assert variant.checkpoint.directory == folder
    vocabulary = {"vocab_size": 125_696, "padded_vocab_size": 125_952}
    assert variant == run.model_copy(
        update={
            "model": run.model.model_copy(update=vocabulary),
            "checkpoint": run.checkpoint.model_copy(update={"directory": folder}),
        }
    )


@pytest.mark.parametrize("name", RUNS + VARIANTS)
def test_the_layout_fits_the_cluster_that_the_file_names(name: str) -> None:
    config, devices = load(name), devices_of(name)
    config.check_devices(devices)
    shape = config.mesh_shape(devices)
    mesh = jax.sharding.AbstractMesh(tuple(shape[axis] for axis in MESH_AXES), MESH_AXES)
    sharding = LogicalSharding(mesh, resolve_rules(config.sharding.rules))  # type: ignore[arg-type]
    parameter_shardings(config.model, sharding)  # every dimension divides
    assert shape["tensor"] <= 8  # inside a node
    assert config.data.sequence_length % (shape["tensor"] * shape["context"]) == 0


@pytest.mark.parametrize("name", RUNS)
def test_pipelines_divide_layers_and_work_in_whole_rounds(name: str) -> None:
    config = load(name)
    pipe, training = config.mesh.pipe, config.training
    assert config.model.num_layers % (pipe * training.virtual_stages) == 0
    micro_batches = config.accumulation_steps(devices_of(name))
    together = training.pipeline_micro_batches or micro_batches
    assert together % pipe == 0
    assert micro_batches % together == 0


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_layouts_of_the_original(name: str) -> None:
    devices, (pipe, data, tensor), micro_batch = ORIGINAL[name]
    config = load(name)
    assert devices_of(name) == devices
    shape = {"pipe": pipe, "data": data, "fsdp": 1, "context": 1, "tensor": tensor}
    assert config.mesh_shape(devices) == shape
    assert config.training.micro_batch_size == micro_batch
    assert config.training.remat in ("none", "minimal")  # no matrix product is computed twice


@pytest.mark.parametrize("name", [run for run in RUNS if not run.startswith("extend_13b_32k")])
def test_the_pretraining_recipe_of_the_original(name: str) -> None:
    config = load(name)
    assert config.data.sequence_length == 2048
    assert config.training.global_batch_size == 2400
    assert config.training.duration.in_samples(2400, 2048) == 4_800_000
    assert config.steps == 2000
    assert config.schedule.type == "constant"
    assert config.optimizer.learning_rate == config.schedule.min_learning_rate == 2.5e-5


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("extend_7b_8k", 8192),
        ("extend_13b_32k", 32_768),
        ("extend_13b_32k_a100", 32_768),
        ("extend_13b_32k_h100", 32_768),
    ],
)
def test_the_extension_recipe_of_the_original(name: str, length: int) -> None:
    config = load(name)
    assert config.data.sequence_length == config.model.max_position_embeddings == length
    assert config.model.rope_scaling is not None
    assert config.model.rope_scaling.type == "linear"
    assert config.model.rope_scaling.factor * 4096 == length
    assert (config.steps, config.training.global_batch_size) == (1000, 128)
    assert config.schedule.type == "cosine"
    assert config.schedule.warmup.in_steps(128, length) == 30
    assert config.optimizer.learning_rate == 2e-5
    assert config.optimizer.weight_decay == 0.01
    assert config.schedule.min_learning_rate == 2e-6


@pytest.mark.parametrize("model", MODELS)
def test_layouts_of_a_model_are_the_same_run(model: str) -> None:
    original = load(model)
    for layout in ("_a100", "_h100"):
        other = load(model + layout)
        for section in ("model", "data", "optimizer", "schedule", "checkpoint"):
            assert getattr(other, section) == getattr(original, section)


def test_checkpoint_folders_of_different_models_differ() -> None:
    folders = {load(name).checkpoint.directory for name in (*RUNS, *VARIANTS)}
    assert len(folders) == 2 * len(MODELS)
