"""Meta's files: logits of a plain implementation of Meta's model, and round trips."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from reference_models import (
    TINY,
    our_logits,
    random_llama,
    random_tokens,
    save,
    train_tiny_tokenizer,
    transformers_logits,
)
from safetensors.numpy import load_file

from dongwu_jax.config import ModelConfig
from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf import HuggingFaceSource
from dongwu_jax.interop.hf_export import HuggingFaceTarget
from dongwu_jax.interop.meta import MetaSource, is_meta_folder
from dongwu_jax.interop.meta_export import MetaTarget
from dongwu_jax.interop.meta_params import write_params
from dongwu_jax.models.parameters import parameter_tree

EVEN = {"vocab_size": 104}  # divisible by 4
KINDS = {
    "mha": EVEN,
    "gqa": EVEN | {"num_attention_heads": 8, "num_key_value_heads": 4},
    "tied": EVEN | {"tie_word_embeddings": True},
    "theta": EVEN | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
}


def meta_logits(folder, tokens):
    """Meta's model written down plainly: consecutive pairs rotate as complex numbers."""
    params = json.loads((folder / "params.json").read_text())
    files = sorted(folder.glob("consolidated.*.pth"))
    ranks = [torch.load(file, weights_only=True) for file in files]
    columns = ("tok_embeddings.weight", "attention.wo.weight", "feed_forward.w2.weight")

    def weight(name):
        parts = [rank[name].double() for rank in ranks]
        if "norm" in name:
            return parts[0]
        return torch.cat(parts, dim=1 if name.endswith(columns) else 0)

    heads, length = params["n_heads"], tokens.shape[1]
    width = params["dim"] // heads
    frequencies = params.get("rope_theta", 10000.0) ** (-torch.arange(0, width, 2).double() / width)
    turns = torch.polar(torch.ones(()).double(), torch.outer(torch.arange(length), frequencies))

    def norm(x, name):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"])
        return x * scale * weight(name)

    def rotated(x):  # [batch, length, heads, width]
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * turns[None, :, None]).flatten(3)

    def attention(x, layer):
        q, k, v = (
            (x @ weight(f"{layer}.attention.{name}.weight").T).unflatten(-1, (-1, width))
            for name in ("wq", "wk", "wv")
        )
        repeats = heads // k.shape[2]
        k, v = (part.repeat_interleave(repeats, dim=2) for part in (rotated(k), v))
        scores = torch.einsum("bqhd,bkhd->bhqk", rotated(q), k) / width**0.5
        future = torch.ones(length, length).triu(1).bool()
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(future, -1e30).softmax(-1), v)
        return mixed.flatten(2) @ weight(f"{layer}.attention.wo.weight").T

    def feed_forward(x, layer):
        w1, w2, w3 = (weight(f"{layer}.feed_forward.{name}.weight") for name in ("w1", "w2", "w3"))
        return (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T

    x = weight("tok_embeddings.weight")[torch.from_numpy(tokens)]
    for n in range(params["n_layers"]):
        x = x + attention(norm(x, f"layers.{n}.attention_norm.weight"), f"layers.{n}")
        x = x + feed_forward(norm(x, f"layers.{n}.ffn_norm.weight"), f"layers.{n}")
    return (norm(x, "norm.weight") @ weight("output.weight").T).numpy()


def _write(target, source, folder):
    folder.mkdir()
    written = []
    target.write(folder, source.read, written.append)
    assert sum(written) > 0
    return folder


def _to_meta(hf, folder, dtype="float32", **options):
    return _write(MetaTarget(hf.config, dtype, **options), hf, folder)


@pytest.fixture
def hf(tmp_path):
    return HuggingFaceSource(save(random_llama(**EVEN), tmp_path / "hf"))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers_and_the_way_back_keeps_every_bit(tmp_path, kind, ranks):
    model = random_llama(**KINDS[kind])
    hf = HuggingFaceSource(save(model, tmp_path / "hf"))
    folder = _to_meta(hf, tmp_path / "meta", model_parallel=ranks)
    assert len(list(folder.glob("*.pth"))) == ranks
    tokens = random_tokens(TINY["vocab_size"])
    expected = meta_logits(folder, tokens)
    assert np.abs(transformers_logits(model, tokens) - expected).max() < 1e-4
    source = MetaSource(folder)
    differing = {
        field
        for field in ModelConfig.model_fields
        if getattr(source.config, field) != getattr(hf.config, field)
    }
    unsaid = {"max_position_embeddings", "initializer_range", "head_dim", "num_kv_heads"}
    assert differing <= unsaid
    again = _write(HuggingFaceTarget(source.config, "float32"), source, tmp_path / "again")
    stored, original = (load_file(f / "model.safetensors") for f in (again, tmp_path / "hf"))
    assert stored.keys() == original.keys()
    assert all(stored[name].tobytes() == original[name].tobytes() for name in original)


@pytest.mark.parametrize("kind", ["gqa", "tied"])
def test_our_logits_equal_metas(tmp_path, kind):
    hf = HuggingFaceSource(save(random_llama(**KINDS[kind]), tmp_path / "hf"))
    folder = _to_meta(hf, tmp_path / "meta", model_parallel=2)
    source = MetaSource(folder)
    tokens = random_tokens(TINY["vocab_size"])
    weights = parameter_tree({name: source.read(name) for name in source.names()})
    ours = our_logits(source.config, weights, tokens)
    assert np.abs(ours - meta_logits(folder, tokens)).max() < 1e-4


def test_files_are_planned_exactly(hf, tmp_path):
    target = MetaTarget(hf.config, "bfloat16", 2)
    folder = _write(target, hf, tmp_path / "meta")
    for plan in target.files():
        state = torch.load(folder / plan.path, weights_only=True)
        assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == plan.tensors
        assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    names = [name for name, _, _ in MetaSource(folder).stored()]
    assert names[0] == "consolidated.00.pth/tok_embeddings.weight"
    assert names[-1] == "consolidated.01.pth/output.weight"


def test_padding_rows_are_left_out(hf, tmp_path):
    padded = hf.config.model_copy(update={"vocab_size": 100, "padded_vocab_size": 104})
    folder = _write(MetaTarget(padded, "float32"), hf, tmp_path / "meta")
    source = MetaSource(folder)
    assert (source.config.vocab_size, source.config.padded_vocab_size) == (100, None)
    assert np.array_equal(source.read("embed_tokens"), hf.read("embed_tokens")[:100])


def _edit(folder, change, file="consolidated.00.pth"):
    state = torch.load(folder / file, weights_only=True)
    change(state)
    torch.save(state, folder / file)


def _edit_params(folder, **changes):
    file = folder / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_embedding_divided_by_rows_as_in_llama_3(hf, tmp_path):
    folder = _to_meta(hf, tmp_path / "meta", model_parallel=2)
    parts = torch.from_numpy(hf.read("embed_tokens").copy()).chunk(2)
    for rank, part in enumerate(parts):
        _edit(
            folder,
            lambda state, part=part: state.update({"tok_embeddings.weight": part.clone()}),
            f"consolidated.{rank:02}.pth",
        )
    source = MetaSource(folder)
    assert np.array_equal(source.read("embed_tokens"), hf.read("embed_tokens"))


def test_what_the_files_do_not_say_is_assumed_and_noted(hf, tmp_path):
    folder = _to_meta(hf, tmp_path / "meta")
    cases = (
        ({"vocab_size": -1, "norm_eps": 1e-6}, 2048),
        ({"norm_eps": 1e-5}, 4096),
        ({"rope_theta": 500000.0, "use_scaled_rope": False}, 8192),
        ({"rope_theta": 1000000}, 16384),
    )
    for changes, length in cases:
        _edit_params(folder, **changes)
        source = MetaSource(folder)
        assert source.config.max_position_embeddings == length
        assert source.config.vocab_size == 104
        assert len(source.notes) == 1
        assert f"{length} is assumed" in source.notes[0]
    _edit_params(folder, max_seq_len=777)
    assert MetaSource(folder).config.max_position_embeddings == 777
    assert MetaSource(folder).notes == []
    _edit(folder, lambda state: state.update({"rope.freqs": torch.rand(4)}))
    assert "rope.freqs" not in MetaSource(folder).names()


def test_a_tied_model_is_recognised(tmp_path):
    hf = HuggingFaceSource(save(random_llama(**KINDS["tied"]), tmp_path / "hf"))
    folder = _to_meta(hf, tmp_path / "meta", model_parallel=2)
    source = MetaSource(folder)
    assert source.config.tie_word_embeddings
    assert "lm_head" not in source.names()
    assert any("taken as tied" in note for note in source.notes)
    _edit(folder, lambda state: state["output.weight"][3].add_(1))
    assert not MetaSource(folder).config.tie_word_embeddings


def test_tokenizers_go_along(tmp_path):
    vocabulary = train_tiny_tokenizer(tmp_path)
    hf = HuggingFaceSource(save(random_llama(vocab_size=400), tmp_path / "hf"))
    folder = _to_meta(hf, tmp_path / "meta", tokenizer=vocabulary)
    assert (folder / "tokenizer.model").read_bytes() == vocabulary.read_bytes()
    assert MetaSource(folder).tokenizer == folder
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    source = MetaSource(folder)
    assert source.tokenizer is None
    assert any("tiktoken" in note for note in source.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_scaled_rope": True}, "Llama 3.1 is not supported"),
        ({"sliding_window": 4096}, "sliding_window: attention over a window"),
        ({"moe": {"num_experts": 8}}, "mixture"),
        ({"dim": None}, "dim must be a positive whole number, not None"),
        ({"dim": 0}, "dim must be a positive whole number, not 0"),
        ({"n_layers": 2.0}, "n_layers must be a positive whole number"),
        ({"rope_theta": "many"}, "rope_theta must be a number, not 'many'"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"frobnicate": 3}, "frobnicate=3 is not understood"),
        ({"dim": 48}, "does not fit dim=48"),
        ({"n_layers": 3}, r"layers\.2\.attention_norm\.weight is missing"),
        ({"n_layers": 1}, r"layers\.1\.\S+ has no place"),
        ({"n_kv_heads": 2}, r"attention\.wk\.weight has shape \(32, 32\)"),
        ({"n_heads": 3}, "asks for n_heads=3 x 10"),
        ({"vocab_size": 105}, "padded_vocab_size=104 is smaller than vocab_size=105"),
    ],
)
def test_params_that_do_not_fit_are_refused(hf, tmp_path, changes, message):
    folder = _to_meta(hf, tmp_path / "meta")
    _edit_params(folder, **changes)
    with pytest.raises(UserError, match=message) as error:
        MetaSource(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"consolidated\.01\.pth: tensor norm\.weight is missing"),
        (lambda s: s.update(x=torch.zeros(1)), "tensor x has no place"),
        (lambda s: s.update(x=1), "'x' is a int, not a tensor"),
        (
            lambda s: s.update({"norm.weight": torch.zeros(3)}),
            r"norm\.weight is float32 \(3,\), but float32 \(32,\) in consolidated\.00\.pth",
        ),
        (
            lambda s: s.update({"norm.weight": s["norm.weight"].half()}),
            r"norm\.weight is float16 \(32,\), but float32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(hf, tmp_path, change, message):
    folder = _to_meta(hf, tmp_path / "meta", model_parallel=2)
    _edit(folder, change, "consolidated.01.pth")
    with pytest.raises(UserError, match=message):
        MetaSource(folder)


def test_missing_files_are_named(hf, tmp_path):
    folder = _to_meta(hf, tmp_path / "meta", model_parallel=4)
    assert is_meta_folder(folder)
    shutil.copy(folder / "consolidated.03.pth", tmp_path / "last")
    (folder / "consolidated.03.pth").unlink()
    with pytest.raises(UserError, match=r"hold 24 rows of \S+, .* is a file missing\?"):
        MetaSource(folder)
    shutil.copy(tmp_path / "last", folder / "consolidated.03.pth")
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(UserError, match=r"consolidated\.01\.pth: is missing"):
        MetaSource(folder)
    for file in folder.glob("*.pth"):
        file.unlink()
    assert not is_meta_folder(folder)


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({"qkv_bias": True}, 1, "no biases"),
        ({"rope_scaling": RopeScaling(factor=2)}, 1, "cannot express it"),
        ({"head_dim": 16}, 1, "head_dim=16"),
        ({}, 3, "num_heads=4 is not divisible"),
        ({"num_kv_heads": 2}, 4, "num_kv_heads=2 is not divisible"),
        ({"vocab_size": 103}, 2, "vocab_size=103 is not divisible"),
    ],
)
def test_models_that_the_format_lacks_are_refused(hf, changes, ranks, message):
    config = hf.config.model_copy(update=changes)
    with pytest.raises(UserError, match=message):
        MetaTarget(config, "float32", ranks).files()


@given(heads=st.integers(1, 64), width=st.integers(1, 64), size=st.integers(1, 100_000))
def test_params_give_exactly_the_feed_forward_width(heads, width, size):
    dim = 2 * heads * width
    config = ModelConfig(
        hidden_size=dim, num_heads=heads, num_kv_heads=heads, intermediate_size=size
    )
    params = write_params(config)
    hidden = int(2 * (4 * dim) / 3)  # Meta's FeedForward, line by line
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple_of = params["multiple_of"]
    assert multiple_of * ((hidden + multiple_of - 1) // multiple_of) == size


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"intermediate_size": 11008}, {"multiple_of": 256}),
        (
            {
                "intermediate_size": 14336,
                "num_kv_heads": 8,
                "vocab_size": 128256,
                "rope_theta": 500000.0,
            },
            {
                "multiple_of": 1024,
                "ffn_dim_multiplier": 1.3,
                "n_kv_heads": 8,
                "vocab_size": 128256,
                "rope_theta": 500000.0,
            },
        ),
    ],
    ids=["Llama 2 7B", "Llama 3 8B"],
)
def test_params_of_released_models_are_metas_own(settings, expected):
    common = {"dim": 4096, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": 32000}
    assert write_params(ModelConfig(**settings)) == common | expected


def test_rounding_to_another_dtype_is_torchs(hf, tmp_path):
    folder = _to_meta(hf, tmp_path / "meta", dtype="float16")
    model = transformers.AutoModelForCausalLM.from_pretrained(hf.path)
    stored = torch.load(folder / "consolidated.00.pth", weights_only=True)
    assert torch.equal(stored["output.weight"], model.lm_head.weight.detach().half())
