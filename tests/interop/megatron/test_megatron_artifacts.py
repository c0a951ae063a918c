"""Checkpoints that Megatron's own code wrote: their logits, their weights, their exact files."""

import pickle
import types

import numpy as np
import pytest
import torch
from megatron_models import flattened, load_with_torch, model_entries, read_all
from reference_models import our_logits

from dongwu_jax.interop.hf import HuggingFaceSource
from dongwu_jax.interop.megatron.export import MegatronLayout, MegatronTarget
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.models.parameters import parameter_tree

# checkpoint: the Hugging Face model of the same weights, description
CHECKPOINTS = {
    "mcore/torch_gqa_untied_tp1pp1": ("gqa_untied", "mcore names (local), T=1 P=1, iteration 7"),
    "mcore/torch_gqa_untied_tp2pp2": ("gqa_untied", "mcore names (local), T=2 P=2, iteration 7"),
    "mcore/torch_gqa_untied_tp1pp2_vpp1": (
        "gqa_untied",
        "mcore names (local), T=1 P=2 V=2, iteration 7",
    ),
    "mcore/torch_mha_tied_tp2pp1": ("mha_tied", "mcore names (local), T=2 P=1, iteration 7"),
    "v23/gqa_untied_tp2pp2": ("gqa_untied", "legacy names, T=2 P=2, iteration 6"),
    "v23_conv/gqa_untied_tp2pp1": ("gqa_untied", "legacy names, T=2 P=1, iteration 1"),
    "llama2023/conv_mha_untied_tp2pp1": ("mha_untied", "Megatron-LLaMA names, T=2 P=1, release"),
    "llama2023/saved_mha_untied_tp1pp1": (
        "mha_untied",
        "Megatron-LLaMA names, T=1 P=1, iteration 5",
    ),
}


@pytest.fixture
def artifacts(shared_data):
    folder = shared_data / "megatron/ckpt"
    if not folder.is_dir():
        pytest.skip("needs Megatron's own checkpoints in ../shared/data/megatron/ckpt")
    return folder


def _logits(source, tokens):
    weights = {name: np.asarray(v, np.float32) for name, v in read_all(source).items()}
    return our_logits(source.config, parameter_tree(weights), tokens)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_and_logits_are_those_of_the_hugging_face_model(artifacts, name):
    model, description = CHECKPOINTS[name]
    source = MegatronSource(artifacts / name)
    assert source.description == f"Megatron checkpoint, {description}"
    reference = HuggingFaceSource(artifacts / "hf" / model)
    for tensor in reference.names():
        ours, theirs = source.read(tensor), reference.read(tensor)
        kept = tuple(map(slice, theirs.shape))  # without padding rows
        np.testing.assert_array_equal(ours[kept], theirs.astype(ours.dtype), err_msg=tensor)
    expected = np.load(artifacts / f"hf/{model}/reference_hf.npz")
    found = _logits(source, expected["input_ids"])[..., : expected["logits"].shape[-1]]
    tolerance = 2e-2 if source.dtype == "float16" else 2e-4
    np.testing.assert_allclose(found, expected["logits"], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("name", "logits"),
    [
        ("mcore/torch_gqa_untied_tp2pp2", "mcore/torch_gqa_untied_tp2pp1.logits.npz"),
        ("v23/gqa_untied_tp2pp2", "v23/gqa_untied_tp2pp1.logits.npz"),
    ],
)
def test_logits_are_megatrons_padding_included(artifacts, name, logits):
    expected = np.load(artifacts / logits)
    found = _logits(MegatronSource(artifacts / name), expected["input_ids"])
    np.testing.assert_allclose(found, expected["logits"], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("start", "wanted", "layout", "rows"),
    [
        ("mcore/torch_gqa_untied_tp2pp2", "mcore/torch_gqa_untied_tp1pp1", (1, 1, 1), 1152),
        ("mcore/torch_gqa_untied_tp2pp2", "mcore/torch_gqa_untied_tp1pp2_vpp1", (1, 2, 2), 1152),
        ("mcore/torch_gqa_untied_tp1pp1", "mcore/torch_gqa_untied_tp2pp2", (2, 2, 1), 1280),
        ("v23/gqa_untied_tp2pp2", "mcore/torch_gqa_untied_tp1pp1", (1, 1, 1), 1152),
        ("mcore/torch_gqa_untied_tp1pp1", "v23/gqa_untied_tp2pp2", (2, 2, 1), 1280),
        ("llama2023/saved_mha_untied_tp1pp1", "llama2023/conv_mha_untied_tp2pp1", (2, 1, 1), 1100),
        ("llama2023/conv_mha_untied_tp2pp1", "llama2023/saved_mha_untied_tp1pp1", (1, 1, 1), 1100),
    ],
)
def test_resharding_gives_megatrons_own_files(artifacts, tmp_path, start, wanted, layout, rows):
    """Same names, shapes, dtypes and bits; padding rows, which are random there, aside."""
    source, reference = MegatronSource(artifacts / start), MegatronSource(artifacts / wanted)
    config = source.config.model_copy(
        update={"vocab_size": 1100, "padded_vocab_size": source.config.vocab_rows}
    )
    target = MegatronTarget(
        config,
        source.dtype,
        MegatronLayout(reference.layout.naming, *layout),
        rows,
        source.iteration,
    )
    target.write(tmp_path, source.read, lambda num_bytes: None)
    for file in target.files():
        inner = file.path.split("/", 1)[1]
        theirs = _model_of(next((artifacts / wanted).glob(f"*/{inner}")))
        ours = model_entries(load_with_torch(tmp_path / file.path))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert (tensor.shape, tensor.dtype) == (ours[name].shape, ours[name].dtype), name
            real = _real_rows(name, inner, rows // layout[0])
            assert torch.equal(ours[name][real], tensor[real]), f"{file.path}: {name}"


def _real_rows(name, inner, rows):
    """Rows of a part that are not padding: the vocabulary has 1100."""
    if "embedding" not in name and "output_layer" not in name:
        return slice(None)
    rank = int(inner.removeprefix("mp_rank_")[:2])
    return slice(max(0, 1100 - rank * rows))


def _model_of(file):
    """Names and tensors as torch reads them, with classes of Megatron replaced by nothing."""
    tree = _torch_load_anything(file)
    entries = flattened({k: v for k, v in tree.items() if k.startswith("model")})
    return {name: tensor for name, tensor in entries.items() if "_extra_state" not in name}


def _torch_load_anything(file):
    class Tolerant(pickle.Unpickler):
        def find_class(self, module, name):
            if module.startswith(("megatron", "transformer_engine")):
                return lambda *args: None
            return super().find_class(module, name)

    tolerant = types.ModuleType("tolerant")
    tolerant.Unpickler, tolerant.load = Tolerant, pickle.load
    return torch.load(file, pickle_module=tolerant, weights_only=False)


def test_source_tells_what_it_assumed(artifacts):
    source = MegatronSource(artifacts / "llama2023/conv_mha_untied_tp2pp1")
    assert "args has no norm_epsilon: 1e-05 assumed" in source.notes
    assert (source.iteration, source.config.vocab_size) == (None, 1100)
    source = MegatronSource(artifacts / "mcore/torch_gqa_untied_tp1pp1")
    assert source.notes == [
        "the vocabulary has 1152 rows; how many are padding is not stored (true vocabulary size)"
    ]
    assert (source.iteration, source.consumed_samples, source.dtype) == (7, 448, "float32")
    assert source.config.rms_norm_eps == 1e-5


def test_iteration_folder_and_file_names(artifacts):
    folder = artifacts / "mcore/torch_gqa_untied_tp2pp2/iter_0000007"
    source = MegatronSource(folder)
    assert source.iteration == 7
    stored = {name: (shape, dtype) for name, shape, dtype in source.stored()}
    name = "mp_rank_01_001/model_optim_rng.pt/model/output_layer.weight"
    assert stored[name] == ((640, 64), "float32")
    assert len(stored) == 54
