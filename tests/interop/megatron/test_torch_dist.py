import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint
from megatron_models import random_weights, read_all, small_config
from reference_models import our_logits
from safetensors.numpy import load_file

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf import HuggingFaceSource
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.megatron.distributed import TorchDistSource, is_distributed_checkpoint
from dongwu_jax.interop.megatron.distributed_export import TorchDistTarget
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.models.parameters import parameter_tree

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ARTIFACT = "megatron/ckpt/mcore/dist_gqa_untied_tp2pp2"
SCRIPT = Path(__file__).parents[2] / "megatron_core_logits.py"
CONFIGS = {
    "mha": {"num_layers": 3},
    "gqa": {"num_layers": 3, "num_kv_heads": 4},
    "tied": {"num_layers": 2, "tie_word_embeddings": True},
    "biases": {"num_layers": 2, "num_kv_heads": 8, "qkv_bias": True},
}


def export(folder, config, weights, rows=None, dtype="float32", **options):
    folder.mkdir(parents=True)
    target = TorchDistTarget(config, dtype, rows or config.vocab_rows, **options)
    target.write(folder, weights.__getitem__, lambda num_bytes: None)
    return folder


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype, name
        assert np.array_equal(found[name], values), name


def load_with_torch(folder):
    """Every tensor of a distributed checkpoint, by torch's own reader."""
    metadata = torch_checkpoint.FileSystemReader(folder).read_metadata()
    state = {
        key: torch.empty(described.size, dtype=described.properties.dtype)
        for key, described in metadata.state_dict_metadata.items()
        if hasattr(described, "size")
    }
    torch_checkpoint.load(state, checkpoint_id=folder, no_dist=True)
    return state


# The artifact: Megatron's own code wrote it on 2 x 2 ranks.


def test_artifact_holds_the_weights_of_the_torch_format(shared_data):
    source = TorchDistSource(shared_data / ARTIFACT)
    other = MegatronSource(shared_data / "megatron/ckpt/mcore/torch_gqa_untied_tp2pp2")
    assert_equal(read_all(source), read_all(other))
    assert source.config == other.config


def test_artifact_holds_the_weights_that_megatron_started_from(shared_data):
    folder = shared_data / "megatron/ckpt/hf/gqa_untied"
    source, original = TorchDistSource(shared_data / ARTIFACT), HuggingFaceSource(folder)
    stored = load_file(folder / "model.safetensors")
    for name in original.names():
        ours = source.read(name)
        part = tuple(slice(size) for size in original.read(name).shape)
        assert np.array_equal(ours[part], original.read(name)), name
    assert len(stored) == len(original.names())


def test_artifact_gives_megatrons_logits(shared_data):
    reference = np.load(shared_data / "megatron/ckpt/hf/gqa_untied/reference_hf.npz")
    theirs = np.load(shared_data / "megatron/ckpt/mcore/torch_gqa_untied_tp2pp1.logits.npz")
    source = TorchDistSource(shared_data / ARTIFACT)
    parameters = load_parameters(source.read, source.config)
    ours = our_logits(source.config, parameters, reference["input_ids"])
    megatron = theirs["logits"].reshape(ours.shape)
    real = reference["logits"].shape[-1]
    assert np.abs(ours - megatron)[..., :real].max() < 1e-4
    assert np.abs(ours[..., :real] - reference["logits"]).max() < 1e-4


def test_artifact_is_described(shared_data):
    folder = shared_data / ARTIFACT
    source = TorchDistSource(folder / "iter_0000007")
    assert is_distributed_checkpoint(folder / "iter_0000007")
    assert (source.iteration, source.consumed_samples) == (7, 448)
    assert source.dtype == "float32"
    assert source.tokenizer is None
    assert "torch_dist" in source.description
    assert "7" in source.description
    stacked = ("decoder.layers.mlp.linear_fc1.weight", (4, 352, 64), "float32")
    assert stacked in source.stored()
    assert source.moments() == "the checkpoint holds no optimizer state"


# Our own files.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip_keeps_every_bit(tmp_path, kind, dtype):
    config = small_config(**CONFIGS[kind])
    weights = random_weights(config, dtype)
    source = TorchDistSource(export(tmp_path / "out", config, weights, dtype=dtype))
    assert_equal(read_all(source), weights)
    assert source.dtype == dtype
    assert source.config == config.model_copy(update={"num_kv_heads": config.kv_heads})


def test_torch_reads_what_we_write(tmp_path):
    config = small_config(num_layers=2, num_kv_heads=4)
    weights = random_weights(config, "bfloat16")
    out = export(tmp_path / "out", config, weights, dtype="bfloat16", iteration=12)
    loaded = load_with_torch(out / "iter_0000012")
    wanted = megatron_tensors(config, weights)
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)
    assert (out / "latest_checkpointed_iteration.txt").read_text() == "12"
    common = torch.load(out / "iter_0000012/common.pt", weights_only=False)
    assert common["iteration"] == 12
    assert common["args"].params_dtype == torch.bfloat16


@pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="megatron-core")),
    reason="needs megatron-core, pip install it",
)
def test_megatron_core_loads_what_we_write(tmp_path):
    scaling = RopeScaling(type="linear", factor=2)
    configs = {
        "gqa": small_config(**CONFIGS["gqa"], rope_scaling=scaling, rms_norm_eps=0.1),
        "tied": small_config(**CONFIGS["tied"]),
        "biases": small_config(**CONFIGS["biases"]),
    }
    weights = {kind: random_weights(config) for kind, config in configs.items()}
    folders = {
        kind: export(tmp_path / kind, config, weights[kind], rows=64) / "release"
        for kind, config in configs.items()
    }
    tokens = np.random.default_rng(0).integers(0, 50, (2, 20))
    np.save(tmp_path / "tokens.npy", tokens)
    command = [sys.executable, SCRIPT, tmp_path / "tokens.npy", *folders.values()]
    done = subprocess.run(map(str, command), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for kind, config in configs.items():
        logits = np.load(folders[kind] / "logits.npy")
        ours = our_logits(config, parameter_tree(weights[kind]), tokens)
        assert logits.shape[-1] == 64
        assert np.abs(logits[..., :50] - ours).max() < 1e-4 * np.abs(ours).max()
        assert np.allclose(logits[..., 50], logits[..., 49])  # padding repeats the last real row


def test_planned_file_is_the_written_one(tmp_path):
    config = small_config(num_layers=2)
    target = TorchDistTarget(config, "float32", 128)
    (planned,) = target.files()
    out = export(tmp_path / "out", config, random_weights(config), rows=128)
    stored = [(key, shape) for key, shape, _ in TorchDistSource(out).stored()]
    assert planned.path == "release/__0_0.distcp"
    assert (out / planned.path).is_file()
    assert planned.tensors == stored
    told = []
    (tmp_path / "again").mkdir()
    target.write(tmp_path / "again", random_weights(config).__getitem__, told.append)
    assert sum(told) == planned.num_bytes("float32")
    again = (tmp_path / "again" / planned.path).read_bytes()
    assert again == (out / planned.path).read_bytes()


def test_vocabulary_is_cut_and_repeated(tmp_path):
    config = small_config(num_layers=1, padded_vocab_size=56)
    weights = random_weights(config)
    embedding = weights["embed_tokens"]
    less = TorchDistSource(export(tmp_path / "less", config, weights, rows=52))
    assert np.array_equal(less.read("embed_tokens"), embedding[:52])
    more = TorchDistSource(export(tmp_path / "more", config, weights, rows=128))
    assert np.array_equal(more.read("embed_tokens")[:50], embedding[:50])
    assert (more.read("embed_tokens")[50:] == embedding[49]).all()
    assert (more.read("lm_head")[:, 50:] == weights["lm_head"][:, 49:50]).all()


def test_positions_in_the_data_come_back(tmp_path):
    config = small_config(num_layers=1)
    weights = random_weights(config)
    run = TorchDistSource(
        export(tmp_path / "run", config, weights, iteration=30, consumed_samples=240)
    )
    assert (run.iteration, run.consumed_samples) == (30, 240)
    fresh = export(tmp_path / "fresh", config, weights, iteration=0)
    assert (fresh / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert TorchDistSource(fresh).iteration is None


def test_values_too_large_for_float16_are_refused(tmp_path):
    config = small_config(num_layers=1)
    weights = random_weights(config) | {"final_norm": np.full(32, 1e6, np.float32)}
    with pytest.raises(UserError, match="float16"):
        export(tmp_path / "out", config, weights, dtype="float16")
    assert not (tmp_path / "out/release/metadata.json").exists()


# Other kinds of files, written by torch itself.


def megatron_tensors(config: ModelConfig, weights: dict) -> dict[str, torch.Tensor]:
    """Megatron's stacked tensors, put together by the definition of its layout."""
    hidden, groups = config.hidden_size, config.kv_heads

    def tensor(array):
        array = np.ascontiguousarray(array)
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def linear(layer, name):
        return weights[f"layers.{layer}.{name}"].reshape(hidden, -1).T

    def qkv(layer):
        q, k, v = (linear(layer, f"attention.{part}_proj") for part in "qkv")
        parts = zip(*(np.split(part, groups) for part in (q, k, v)), strict=True)
        return np.concatenate([part for group in parts for part in group])

    def block(layer):
        return {
            "self_attention.linear_qkv.layer_norm_weight": weights[
                f"layers.{layer}.attention_norm"
            ],
            "self_attention.linear_qkv.weight": qkv(layer),
            "self_attention.linear_proj.weight": (
                weights[f"layers.{layer}.attention.o_proj"].reshape(-1, hidden).T
            ),
            "mlp.linear_fc1.layer_norm_weight": weights[f"layers.{layer}.mlp_norm"],
            "mlp.linear_fc1.weight": np.concatenate(
                [linear(layer, "mlp.gate_proj"), linear(layer, "mlp.up_proj")]
            ),
            "mlp.linear_fc2.weight": weights[f"layers.{layer}.mlp.down_proj"].T,
        }

    blocks = [block(layer) for layer in range(config.num_layers)]
    found = {f"decoder.layers.{key}": np.stack([b[key] for b in blocks]) for key in blocks[0]}
    found["embedding.word_embeddings.weight"] = weights["embed_tokens"]
    found["decoder.final_layernorm.weight"] = weights["final_norm"]
    if not config.tie_word_embeddings:
        found["output_layer.weight"] = weights["lm_head"].T
    return {key: tensor(values) for key, values in found.items()}


def save_with_torch(folder, config, tensors):
    """A checkpoint whose tensors torch has written, with the arguments in common.pt."""
    arguments = export(folder, config, random_weights(config), iteration=5)
    inner = arguments / "iter_0000005"
    for name in ("__0_0.distcp", ".metadata"):
        (inner / name).unlink()
    torch_checkpoint.save(tensors, checkpoint_id=inner, no_dist=True)
    return folder


@pytest.fixture
def model(tmp_path):
    config = small_config(num_layers=2, num_kv_heads=4)
    weights = random_weights(config)
    return config, weights, megatron_tensors(config, weights)


def test_layers_that_are_numbered(tmp_path, model):
    config, weights, tensors = model
    numbered = {}
    for key, values in tensors.items():
        if key.startswith("decoder.layers."):
            for layer, row in enumerate(values):
                numbered[key.replace("layers.", f"layers.{layer}.")] = row.clone()
        else:
            numbered[key] = values
    source = TorchDistSource(save_with_torch(tmp_path / "out", config, numbered))
    assert_equal(read_all(source), weights)


def test_gate_and_up_in_two_tensors(tmp_path, model):
    config, weights, tensors = model
    fc1 = tensors.pop("decoder.layers.mlp.linear_fc1.weight")
    gate, up = fc1.chunk(2, dim=1)
    tensors["decoder.layers.mlp.linear_fc1.weight_v"] = up.clone()
    tensors["decoder.layers.mlp.linear_fc1.weight_w"] = gate.clone()
    source = TorchDistSource(save_with_torch(tmp_path / "out", config, tensors))
    assert_equal(read_all(source), weights)


def test_rows_in_metas_order_are_turned(tmp_path, model):
    config, weights, tensors = model
    folder = save_with_torch(tmp_path / "out", config, tensors)
    file = folder / "iter_0000005/common.pt"
    common = torch.load(file, weights_only=False)
    common["args"].rotary_interleaved = True
    torch.save(common, file)
    source = TorchDistSource(folder)
    width = config.width_per_head
    turned = [*range(0, width, 2), *range(1, width, 2)]  # pairs of neighbours to halves
    for name, values in weights.items():
        rotated = name.endswith(("q_proj", "k_proj"))
        wanted = values[..., turned] if rotated else values
        assert np.array_equal(source.read(name), wanted), name


def test_moments_shaped_like_the_model(tmp_path, model):
    config, weights, tensors = model
    states = {
        "exp_avg": random_weights(config),
        "exp_avg_sq": {name: values**2 for name, values in weights.items()},
        "fp32_param": {name: values + np.float32(1) for name, values in weights.items()},
    }
    halves = {key: values.bfloat16() for key, values in tensors.items()}
    for kind, values in states.items():
        halves |= {
            f"optimizer.state.{kind}.{key}": tensor
            for key, tensor in megatron_tensors(config, values).items()
        }
    source = TorchDistSource(save_with_torch(tmp_path / "out", config, halves))
    moments = source.moments()
    assert source.dtype == "bfloat16"
    assert not isinstance(moments, str)
    assert moments.names() == source.names()
    assert_equal({name: moments.exp_avg(name) for name in weights}, states["exp_avg"])
    assert_equal({name: moments.exp_avg_sq(name) for name in weights}, states["exp_avg_sq"])
    assert_equal({name: moments.master(name) for name in weights}, states["fp32_param"])


def test_moments_in_buckets_are_not_carried(tmp_path, model):
    config, weights, tensors = model
    key = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.float32, torch.float32)."
    tensors[f"{key}bucket_idx_0.exp_avg"] = torch.zeros(100)
    source = TorchDistSource(save_with_torch(tmp_path / "out", config, tensors))
    assert_equal(read_all(source), weights)
    assert "--dist-ckpt-optim-fully-reshardable" in source.moments()


def test_moments_of_another_shape_are_not_carried(tmp_path, model):
    config, _, tensors = model
    tensors["optimizer.state.exp_avg.decoder.final_layernorm.weight"] = torch.zeros(3)
    source = TorchDistSource(save_with_torch(tmp_path / "out", config, tensors))
    assert "not shaped like the model" in source.moments()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.final_layernorm.weight"), "final_layernorm.weight is missing"),
        (lambda t: t.pop("decoder.layers.mlp.linear_fc2.weight"), "linear_fc2.weight is missing"),
        (lambda t: t.pop("embedding.word_embeddings.weight"), "word_embeddings.weight"),
        (lambda t: t.update({"decoder.layers.mlp.router.weight": torch.zeros(2)}), "no place"),
        (lambda t: t.update({"decoder.final_layernorm.weight": torch.zeros(3)}), "has shape"),
        (
            lambda t: t.update({"decoder.layers.7.mlp.linear_fc2.weight": torch.zeros(3)}),
            "no place",
        ),
        (
            lambda t: t.update({"output_layer.weight": t["output_layer.weight"].to(torch.int8)}),
            "stored as int8",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path, model, change, message):
    config, _, tensors = model
    change(tensors)
    folder = save_with_torch(tmp_path / "out", config, tensors)
    with pytest.raises(UserError, match=message):
        TorchDistSource(folder)
