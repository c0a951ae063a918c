"""Megatron training checkpoints in other layouts, made from a genuine one with torch."""

import argparse
import json
import pickle
import re
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint

_PLAIN = (type(None), bool, int, float, str, list, tuple, torch.dtype)


class _Stub:
    """Stands in for Megatron's own classes."""

    def __init__(self, *arguments: Any): ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Stub if module.startswith("megatron") else super().find_class(module, name)


def genuine_checkpoint(shared_data: Path) -> dict[str, Any]:
    """The reference run at iteration 20, with the plain values of its `args`."""
    module = types.ModuleType("stub_pickle")
    module.Unpickler, module.load = _Unpickler, pickle.load  # type: ignore[attr-defined]
    folder = shared_data / "megatron" / "train" / "ckpt_tp1pp1" / "iter_0000020"
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    tree = torch.load(path, pickle_module=module, weights_only=False)
    plain = {name: value for name, value in vars(tree["args"]).items() if type(value) in _PLAIN}
    kept = ("checkpoint_version", "iteration", "model", "optimizer", "opt_param_scheduler")
    return {name: tree[name] for name in kept} | {"args": argparse.Namespace(**plain)}


def write_checkpoint(
    folder: Path,
    tree: dict[str, Any],
    tensor: int = 1,
    pipeline: int = 1,
    bfloat16: bool = False,
    arguments: dict[str, Any] | None = None,
) -> Path:
    """Write `tree` (of T=P=1, with or without `optimizer`) divided over ranks.

    Args:
        arguments: what shall differ in `args`.
    """
    iteration = folder / f"iter_{tree['iteration']:07d}"
    layout = {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "bf16": bfloat16,
    }
    args = argparse.Namespace(**vars(tree["args"]) | layout | (arguments or {}))
    for p in range(pipeline):
        names = _stage_names(list(tree["model"]), p, pipeline, args.num_layers)
        for t in range(tensor):
            rank = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pipeline > 1 else "")
            content = tree | {"args": args} | _rank_content(tree, names, t, tensor, bfloat16)
            (iteration / rank).mkdir(parents=True)
            torch.save(content, iteration / rank / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(tree["iteration"]))
    return folder


def _rank_content(
    tree: dict[str, Any], names: dict[str, str], t: int, tensor: int, bfloat16: bool
) -> dict[str, Any]:
    """Model and optimizer of one rank.

    Args:
        names: the genuine name by the name within the stage, in order.
    """
    model = {
        local: None if value is None else _shard(local, value, t, tensor)
        for local, name in names.items()
        for value in [tree["model"][name]]
    }
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    stored = {name: None if value is None else value.to(dtype) for name, value in model.items()}
    if "optimizer" not in tree:
        return {"model": stored}
    numbers = {name: number for number, name in enumerate(_optimizer_order(tree["model"]))}
    states, groups, masters = {}, [], []
    own = _optimizer_order(model)
    for rank_of_group, matrices in enumerate((True, False)):
        members = [name for name in own if (model[name].ndim > 1) == matrices]
        group = dict(tree["optimizer"]["param_groups"][rank_of_group])
        groups.append(group | {"params": [own.index(name) for name in members]})
        masters.append([model[name] for name in members])
        for name in members:
            genuine = tree["optimizer"]["state"][numbers[names[name]]]
            states[own.index(name)] = {
                key: value if key == "step" else _shard(name, value, t, tensor)
                for key, value in genuine.items()
            }
    adam = {"state": states, "param_groups": groups}
    mixed = {"optimizer": adam, "fp32_from_fp16_params": masters}
    return {"model": stored, "optimizer": mixed if bfloat16 else adam}


def _optimizer_order(model: dict[str, Any]) -> list[str]:
    """Matrices as they are registered, then vectors."""
    weights = [name for name, value in model.items() if value is not None]
    return sorted(weights, key=lambda name: model[name].ndim == 1)


def _stage_names(names: list[str], p: int, pipeline: int, num_layers: int) -> dict[str, str]:
    """The names of a stage, blocks numbered from 0, and what they are in the whole model."""
    per_stage = num_layers // pipeline
    found = {}
    for name in names:
        parts = name.split(".")
        if parts[1] == "layers":
            stage, local = divmod(int(parts[2]), per_stage)
            parts[2] = str(local)
        else:
            stage = 0 if parts[0] == "embedding" else pipeline - 1
        if stage == p:
            found[".".join(parts)] = name
    return found


def _shard(name: str, value: torch.Tensor, t: int, tensor: int) -> torch.Tensor:
    """Rank t's part: whole rows, or columns for the second matrix of a pair; gate and up apart."""
    if value.ndim == 1:
        return value
    if "linear_fc1" in name:
        gate, up = value.chunk(2)
        return torch.cat([gate.chunk(tensor)[t], up.chunk(tensor)[t]])
    columns = "linear_proj" in name or "linear_fc2" in name
    return value.chunk(tensor, dim=1 if columns else 0)[t].contiguous()


# Transformer Engine's names, which torch_dist has whatever the model ran with.
_FUSED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def write_distributed_checkpoint(
    folder: Path, tree: dict[str, Any], optimizer: str | None, bfloat16: bool = False
) -> Path:
    """Write `tree` as torch_dist, with blocks stacked and the older `common.pt`.

    Args:
        optimizer: "reshardable", shaped like the model; "buckets"; or None.
    """
    iteration = folder / f"iter_{tree['iteration']:07d}"
    model = {name: value for name, value in tree["model"].items() if value is not None}
    entries = tree["optimizer"]["state"]
    states = {name: entries[number] for number, name in enumerate(_optimizer_order(model))}
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    tensors = _stacked({name: value.to(dtype) for name, value in model.items()})
    if optimizer == "reshardable":
        kinds = {kind: {name: states[name][kind] for name in model} for kind in _MOMENTS}
        for kind, values in (kinds | ({"fp32_param": model} if bfloat16 else {})).items():
            stacked = _stacked(values).items()
            tensors |= {f"optimizer.state.{kind}.{name}": value for name, value in stacked}
    if optimizer == "buckets":
        flat = torch.cat([states[name]["exp_avg"].flatten() for name in model])
        group = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0"
        key = f"{group}.dtype_(torch.float32, torch.float32).bucket_idx_0.exp_avg"
        tensors[key] = flat
    iteration.mkdir(parents=True)
    distributed_checkpoint.save(tensors, checkpoint_id=iteration, no_dist=True)
    kept = ("args", "checkpoint_version", "iteration", "opt_param_scheduler")
    adam = {"state": {"common_step": 20}, "param_groups": [{"lr": 2e-4}]}
    torch.save({name: tree[name] for name in kept} | {"optimizer": adam}, iteration / "common.pt")
    described = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (iteration / "metadata.json").write_text(json.dumps(described))
    (folder / "latest_checkpointed_iteration.txt").write_text(str(tree["iteration"]))
    return folder


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _stacked(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Blocks on a leading axis."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, value in values.items():
        in_block = re.fullmatch(r"decoder\.layers\.\d+\.(.*)", name)
        if in_block is None:
            found[name] = [value]
        else:
            rest = _FUSED_NORMS.get(in_block[1], in_block[1])
            found.setdefault(f"decoder.layers.{rest}", []).append(value)
    return {
        name: torch.stack(parts) if name.startswith("decoder.layers.") else parts[0]
        for name, parts in found.items()
    }
