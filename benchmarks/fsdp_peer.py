"""The step of `torch_peer.py` over the GPUs of this host with fully_shard (FSDP2).

    torchrun --standalone --nproc-per-node 8 benchmarks/fsdp_peer.py SHAPE STEPS

Parameters float32 and split, gathered block by block in bfloat16; gradients are reduced in float32
after every micro batch, as ours are. `rows` of SHAPE are those of one GPU. `multigpu.py` calls it.
"""

import json
import os
import sys

import torch
import torch.distributed
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch_peer import Model, initialize, measure, rotary_tables


def make_split_model(shape: dict[str, int]) -> Model:
    """The model with every parameter split over all GPUs; no GPU ever holds the whole."""
    with torch.device("meta"):
        model = Model(shape | {"checkpointing": 0})
    mesh = init_device_mesh("cuda", (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for index, layer in enumerate(model.layers):
        if shape["checkpointing"]:  # inside, or the recomputation would gather weights once more
            layer = model.layers[index] = checkpoint_wrapper(layer)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device="cuda")
    initialize(model)
    with torch.device("cuda"):
        model.cosine, model.sine = rotary_tables(shape)
    return model


def main() -> None:
    """One process of the group; the first prints."""
    if "LOCAL_RANK" not in os.environ or len(sys.argv) != 3:
        sys.exit(
            "fsdp_peer.py is started by multigpu.py, under torchrun and as SHAPE STEPS; run "
            "benchmarks/multigpu.py --help"
        )
    torch.set_float32_matmul_precision("high")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl")
    shape = json.loads(sys.argv[1])
    figures = measure(make_split_model(shape), shape, int(sys.argv[2]))
    if torch.distributed.get_rank() == 0:
        print(json.dumps(figures), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
