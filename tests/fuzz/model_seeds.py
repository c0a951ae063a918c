"""Seeds of models in every format that is read, and of files of tensors."""

import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy
from gguf_writing import llama_writer
from seed_material import CHAT_TEMPLATE, MODEL, VOCAB, dump

from dongwu_jax.config import ModelConfig
from dongwu_jax.interop.conversion import TargetOptions, convert, make_target
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.tensors import model_tensors


def write_torch_files(root: Path) -> None:
    """What torch.save writes, now and before 1.6, a bare pickle, and safetensors."""
    import torch

    folder = root / "torch"
    folder.mkdir()
    tree = {
        "w": torch.arange(12, dtype=torch.float32).view(3, 4).T,
        "b": torch.ones(3, dtype=torch.bfloat16),
        "nested": OrderedDict(a=[1, 2.5, None, True, "x", b"y", (1, 2)], s={1, 2}),
        "empty": torch.zeros(0, 3),
    }
    torch.save(tree, folder / "tree.pt")
    torch.save(tree, folder / "before_1_6.pt", _use_new_zipfile_serialization=False)
    (folder / "bare.pickle").write_bytes(pickle.dumps(tree["nested"], 2))
    folder = root / "safetensors"
    folder.mkdir()
    arrays = {"w": np.ones((3, 4), np.float32), "n": np.arange(5), "none": np.zeros((0, 2))}
    safetensors.numpy.save_file(arrays, folder / "x.safetensors", metadata={"format": "pt"})


def write_models(root: Path) -> None:
    """One small model in every format."""
    import torch

    config = ModelConfig.model_validate(MODEL)
    rng = np.random.default_rng(0)
    weights = [
        (tensor, rng.normal(size=tensor.torch_shape).astype(np.float32))
        for tensor in model_tensors(config)
    ]
    scratch = root / "scratch" / "model"
    _hugging_face(scratch, {t.hugging_face: w for t, w in weights}, root / "tokenizer")
    shutil.copytree(scratch, root / "hf_sharded")
    _divide(root / "hf_sharded")
    (root / "hf_bin").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(scratch / name, root / "hf_bin" / name)
    torch.save(
        {t.hugging_face: torch.from_numpy(w) for t, w in weights},
        root / "hf_bin" / "pytorch_model.bin",
    )
    options = {
        "hf_quantized": TargetOptions("hf", quantize="int8"),
        "megatron": TargetOptions("megatron", tensor_parallel=2, pipeline_parallel=2),
        "megatron_legacy": TargetOptions("megatron", naming="legacy"),
        "torch_dist": TargetOptions("torch_dist", iteration=7),
        "meta": TargetOptions("meta", tensor_parallel=2),
        "checkpoint": TargetOptions("dongwu"),
    }
    for name, target in options.items():
        source = open_source(scratch)
        convert(source, root / name, make_target(source, target))
    _gguf(root / "gguf", config, {t.gguf: w for t, w in weights}, root / "tokenizer")


def _hugging_face(folder: Path, weights: dict[str, np.ndarray], tokenizer: Path) -> None:
    shutil.copytree(tokenizer, folder)
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    dump(folder / "config.json", fields)
    safetensors.numpy.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _divide(folder: Path) -> None:
    """The one file of weights into two and an index; positions are scaled, too."""
    fields = json.loads((folder / "config.json").read_bytes())
    fields["rope_scaling"] = {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32.0}
    dump(folder / "config.json", fields)
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        safetensors.numpy.save_file({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    dump(folder / "model.safetensors.index.json", index)


def _gguf(
    folder: Path, config: ModelConfig, weights: dict[str, np.ndarray], tokenizer: Path
) -> None:
    folder.mkdir()
    writer = llama_writer(folder / "model.gguf", config)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    described = json.loads((tokenizer / "tokenizer.json").read_bytes())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].__getitem__)
    tokens += [f"<unused{n}>" for n in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(merge) for merge in described["merges"]])
    writer.add_token_types([3 if n < 4 else 1 for n in range(VOCAB)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, values in weights.items():
        if values.ndim == 2 and "ffn_gate" in name:
            values = values.astype(np.float16)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
