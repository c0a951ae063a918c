"""Seeds of runs: configurations, what a run reports, its checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import yaml
from seed_material import MODEL, dump, write_jsonl

from dongwu_jax.config import RunConfig, parse_config
from dongwu_jax.interop.sources import open_source


def write_configs(root: Path) -> None:
    """A configuration on a base, and overrides of it."""
    folder = root / "config"
    folder.mkdir()
    base = {"model": MODEL | {"rope_scaling": {"type": "linear", "factor": 2.0}}}
    run = {
        "base": "base.yaml",
        "mesh": {"fsdp": 2},
        "data": {
            "blend": [{"prefix": "a", "weight": 0.5}, {"prefix": "b", "weight": 1.5}],
            "sequence_length": 32,
            "split": "98,1,1",
        },
        "training": {"duration": "100 steps", "global_batch_size": 8},
        "optimizer": {"learning_rate": 1e-3, "beta2": 0.95},
        "checkpoint": {"directory": "run/checkpoints"},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
    overrides = [
        "model.num_layers=4",
        "data.split='90,5,5'",
        "mesh.tensor=2",
        "optimizer.weight_decay=0.1",
    ]
    (root / "overrides").mkdir()
    dump(root / "overrides" / "overrides.json", overrides)


def write_run_folder(root: Path) -> None:
    """What a run of eight steps has reported, and a perplexity."""
    folder = root / "run_folder"
    folder.mkdir()
    time = 1_000_000.0
    start = {"time": time, "event": "start", "began": time - 5, "step": 0, "steps": 8}
    start |= {"resumed": False, "previous_step": 0, "previous_time": None}
    start["config"] = run_config(folder).model_dump(mode="json")
    start |= {"parameters": 1234, "versions": {"jax": "1.2"}, "blend": [{"name": "a", "weight": 1}]}
    start["devices"] = {"kind": "cpu", "count": 1, "processes": 1, "host": "here"}
    events = [start, {"time": time + 2, "event": "compiled", "seconds": 2.0}]
    pause = {"what": "checkpoint", "step": 4, "seconds": 1}
    events.append({"time": time + 9, "event": "pause"} | pause)
    events.append({"time": time + 20, "event": "end", "reason": "finished", "step": 8})
    lines = [
        {"step": n, "time": time + 2 + n, "loss": 9.0 / n, "step_seconds": 1.0} for n in range(1, 9)
    ]
    lines.append({"step": 8, "time": time + 11, "validation_loss": 2.5})
    write_jsonl(folder / "events.jsonl", events)
    write_jsonl(folder / "metrics.jsonl", lines)
    result = {"protocol": "joined", "length": 32, "perplexity": 9.5, "tokens": 100, "documents": 3}
    dump(folder / "perplexity.json", {"model": "m", "data": "d", "results": [result]})


def write_checkpoints(root: Path) -> None:
    """Runs as the trainer saves them, optimizer included: of a whole model, and of adapters."""
    dataset = root / "resume" / "text"
    dataset.parent.mkdir()
    for suffix in (".bin", ".idx"):
        shutil.copy(root / "indexed" / f"text{suffix}", f"{dataset}{suffix}")
    save_run(run_config(root / "resume"))
    shutil.copytree(root / "scratch" / "model", root / "adapters" / "base")
    for suffix in (".bin", ".idx"):
        shutil.copy(root / "indexed" / f"text{suffix}", root / "adapters" / f"text{suffix}")
    save_run(run_config(root / "adapters", rank=2))


def run_config(folder: Path, rank: int = 0) -> RunConfig:
    """A run in `folder`, of adapters on `folder/base` if they have a rank."""
    settings: dict[str, Any] = {
        "model": MODEL,
        "data": {"blend": str(folder / "text"), "sequence_length": 8},
        "training": {"duration": 4, "global_batch_size": 2, "micro_batch_size": 1},
        "precision": {"compute_dtype": "float32"},
        "checkpoint": {"directory": str(folder / "checkpoints"), "asynchronous": False},
    }
    if rank:
        settings["training"]["initial_weights"] = str(folder / "base")
        settings["lora"] = {"rank": rank, "alpha": 4.0}
    return parse_config(settings, "seed")


def save_run(config: RunConfig) -> None:
    """Write step 0 as a trainer does."""
    import jax

    from dongwu_jax.data.fingerprint import fingerprint
    from dongwu_jax.interop.loading import load_parameters
    from dongwu_jax.parallel.layout import make_sharding
    from dongwu_jax.training.checkpoints.base_weights import describe_base
    from dongwu_jax.training.checkpoints.store import Checkpoints
    from dongwu_jax.training.state import StartingPoint, initial_state

    state = initial_state(config, make_sharding(config, jax.devices()[:1]), StartingPoint())
    data: dict[str, Any] = {"fingerprint": fingerprint(config.data, 8), "consumed_samples": 0}
    tokenizer: list[Path] = []
    if config.lora.rank:
        source = open_source(config.training.initial_weights)
        data["base_weights"] = describe_base(load_parameters(source.read, source.config), "float32")
    else:
        tokenizer = sorted((config.checkpoint.directory.parents[1] / "tokenizer").iterdir())
    checkpoints = Checkpoints(config.checkpoint)
    checkpoints.save(state, config, data, tokenizer)
    checkpoints.close()
