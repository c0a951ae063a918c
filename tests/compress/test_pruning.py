"""What pruning leaves computes what the whole model computes without the rest."""

import jax
import numpy as np
import pytest
import torch
import transformers
from conversions import convert_to
from reference_models import (
    TOKENIZER_VOCAB,
    logits_of,
    random_llama,
    random_tokens,
    save,
    save_with_tokenizer,
    transformers_logits,
)

from dongwu_jax.compress.choosing import choose, norm_scales, random_scores
from dongwu_jax.compress.importance import Importance, measure_importance
from dongwu_jax.compress.pruned_source import PrunedSource
from dongwu_jax.compress.selection import BlockSelection, Selection, everything
from dongwu_jax.compress.shapes import Shape, check_shape, parse_target, shape_of
from dongwu_jax.config import ModelConfig
from dongwu_jax.errors import UserError
from dongwu_jax.interop.loaded_model import load_model
from dongwu_jax.interop.sources import open_source

GQA = {"num_key_value_heads": 2, "num_hidden_layers": 4, "attention_bias": False}


@pytest.fixture(params=[{}, GQA, GQA | {"tie_word_embeddings": True}], ids=["mha", "gqa", "tied"])
def model(request):
    return random_llama(**{"num_hidden_layers": 4} | request.param)


def test_pruning_nothing_changes_nothing(model, tmp_path):
    source = open_source(save(model, tmp_path / "in"))
    pruned = PrunedSource(source, everything(source.config), {})
    convert_to(pruned, tmp_path / "out", "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = random_tokens(101)
    assert np.array_equal(transformers_logits(again, tokens), transformers_logits(model, tokens))


def test_what_is_zero_can_be_cut(model, tmp_path):
    """Feed-forward channels, heads and blocks that add nothing to the residual stream."""
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    kept_kv = np.arange(1, config.num_key_value_heads)
    kept_heads = np.concatenate([kv * group + np.arange(group) for kv in kept_kv])
    kept_mlp = np.arange(7, config.intermediate_size)
    head_dim = config.hidden_size // config.num_attention_heads
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight[:, :7] = 0
            layer.self_attn.o_proj.weight[:, : head_dim * group] = 0
            if number == 2:
                layer.mlp.down_proj.weight[:] = 0
                layer.self_attn.o_proj.weight[:] = 0
    source = open_source(save(model, tmp_path / "in"))
    blocks = tuple(BlockSelection(n, kept_mlp, kept_kv, kept_heads) for n in (0, 1, 3))
    hidden = np.arange(config.hidden_size)
    pruned = PrunedSource(source, Selection(hidden, blocks), {})
    tokens = random_tokens(101)
    np.testing.assert_allclose(logits_of(pruned, tokens), logits_of(source, tokens), atol=2e-5)
    assert pruned.config.num_layers == 3
    assert pruned.config.num_heads == len(kept_heads)


def test_query_heads_that_are_zero_can_be_cut_out_of_their_groups(tmp_path):
    """Another one of each group, in each block."""
    model = random_llama(num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2)
    kept_heads = (np.array([0, 2, 3, 5, 6, 7]), np.array([0, 1, 2, 4, 6, 7]))
    with torch.no_grad():
        for layer, kept in zip(model.model.layers, kept_heads, strict=True):
            for head in np.setdiff1d(np.arange(8), kept):
                layer.self_attn.o_proj.weight[:, 4 * head : 4 * head + 4] = 0
    source = open_source(save(model, tmp_path / "in"))
    blocks = tuple(
        BlockSelection(layer, np.arange(56), np.arange(2), kept)
        for layer, kept in enumerate(kept_heads)
    )
    pruned = PrunedSource(source, Selection(np.arange(32), blocks), {})
    tokens = random_tokens(101)
    np.testing.assert_allclose(logits_of(pruned, tokens), logits_of(source, tokens), atol=2e-5)
    by_score = random_scores(source.config, 0)
    for block, kept in enumerate(kept_heads):
        by_score.heads[block] = np.isin(np.arange(8), kept)
    chosen = choose(by_score, Shape(2, 32, 56, 6, 2), source.config)
    assert [block.heads.tolist() for block in chosen.blocks] == [k.tolist() for k in kept_heads]


def test_silent_hidden_channels_can_be_cut_with_the_norms_scaled(tmp_path):
    """Channels that are always zero: norms then see a larger mean square, which is put right."""
    model, silent = random_llama(num_hidden_layers=2, **{"rms_norm_eps": 1e-12}), 8
    with torch.no_grad():
        model.model.embed_tokens.weight[:, :silent] = 0
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:silent] = 0
            layer.self_attn.o_proj.weight[:silent] = 0
    source = open_source(save(model, tmp_path / "in"))
    whole = everything(source.config)
    selection = Selection(np.arange(silent, source.config.hidden_size), whole.blocks)
    width = source.config.hidden_size
    stream = np.ones((5, width))
    stream[:, :silent] = 0
    scores = random_scores(source.config, 0)
    scores = Importance(scores.blocks, scores.hidden, scores.mlp, scores.heads, stream)
    pruned = PrunedSource(source, selection, norm_scales(scores, selection))
    tokens = random_tokens(101)
    np.testing.assert_allclose(logits_of(pruned, tokens), logits_of(source, tokens), atol=1e-4)


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (4, 2)])
def test_importance_is_what_hooks_in_transformers_see(devices, fsdp, tmp_path):
    reference = random_llama(vocab_size=TOKENIZER_VOCAB, **GQA)
    folder = save_with_tokenizer(reference, tmp_path)
    tokens = np.random.default_rng(0).integers(TOKENIZER_VOCAB, size=(8, 10), dtype=np.int32)
    loaded = load_model(folder, "float32", devices=jax.devices()[:devices], fsdp=fsdp)
    found = measure_importance(loaded, [tokens[:4], tokens[4:]])

    seen = {"mlp": {}, "heads": {}, "norm": {}, "stream": {}, "blocks": {}}

    def size(x):
        return x.abs().mean(1).pow(2).sum(0)

    def see(kind, place, value):
        def hook(module, arguments, output):
            seen[kind][place] = value(arguments[0], output)

        return hook

    norms = []
    for number, layer in enumerate(reference.model.layers):
        layer.mlp.down_proj.register_forward_hook(see("mlp", number, lambda x, _: size(x)))
        layer.self_attn.o_proj.register_forward_hook(
            see("heads", number, lambda x, _: size(x).view(4, -1).sum(-1).sqrt())
        )
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        layer.register_forward_hook(
            see(
                "blocks",
                number,
                lambda x, y: (
                    1 - torch.cosine_similarity(x, y[0] if isinstance(y, tuple) else y, dim=-1)
                ).mean(),
            )
        )
    for number, norm in enumerate([*norms, reference.model.norm]):
        norm.register_forward_hook(see("norm", number, lambda _, y: size(y).sqrt()))
        norm.register_forward_hook(
            see(
                "stream",
                number,
                lambda x, _: (x / x.pow(2).mean(-1, keepdim=True).sqrt()).pow(2).mean((0, 1)),
            )
        )
    with torch.no_grad():
        # Hooks that were registered later see as well: two per norm, under different kinds.
        reference(torch.tensor(tokens))
    layers = range(4)
    np.testing.assert_allclose(found.mlp, [seen["mlp"][n].sqrt() for n in layers], rtol=1e-4)
    np.testing.assert_allclose(found.heads, [seen["heads"][n] for n in layers], rtol=1e-4)
    np.testing.assert_allclose(found.blocks, [seen["blocks"][n] for n in layers], rtol=1e-4)
    np.testing.assert_allclose(
        found.hidden, torch.stack([seen["norm"][n] for n in range(9)]).sum(0), rtol=1e-4
    )
    np.testing.assert_allclose(found.stream, [seen["stream"][n] for n in range(9)], rtol=1e-3)


def test_the_best_are_kept_in_order():
    config = ModelConfig(
        vocab_size=10, hidden_size=8, intermediate_size=6, num_layers=3, num_heads=4,
        num_kv_heads=2, head_dim=2,
    )  # fmt: skip
    scores = Importance(
        blocks=np.array([0.5, 0.1, 0.9]),
        hidden=np.array([1, 8, 2, 7, 3, 6, 4, 5.0]),
        mlp=np.tile([6, 1, 5, 2, 4, 3.0], (3, 1)),
        heads=np.array([[1, 2, 9, 0], [1, 1, 1, 1], [4, 5, 1, 2.0]]),
        stream=np.ones((7, 8)),
    )
    kept = choose(scores, Shape(2, 4, 3, 1, 1), config)
    assert [block.layer for block in kept.blocks] == [0, 2]
    assert kept.hidden.tolist() == [1, 3, 5, 7]
    assert kept.blocks[0].mlp.tolist() == [0, 2, 4]
    assert [(b.kv_heads.tolist(), b.heads.tolist()) for b in kept.blocks] == [
        ([1], [2]),
        ([0], [1]),
    ]
    balanced = choose(scores, Shape(2, 4, 2, 2, 2), config, balanced_over=2)
    assert balanced.blocks[0].mlp.tolist() == [0, 4]
    assert balanced.blocks[0].heads.tolist() == [1, 2]
    by_hand = choose(scores, Shape(2, 4, 3, 1, 1), config, dropped_layers=[2])
    assert [block.layer for block in by_hand.blocks] == [0, 1]


def test_targets_are_read_and_checked():
    whole = ModelConfig(
        hidden_size=5120, intermediate_size=13824, num_layers=40, num_heads=40, vocab_size=32000
    )
    text = "num_hidden_layers=32,hidden_size=4096,intermediate_size=11008,num_attention_heads=32"
    shape = parse_target(text, whole)
    assert shape == Shape(32, 4096, 11008, 32, 32)
    check_shape(shape, whole, tensor_parallel=8)
    assert parse_target("num_layers=30", whole) == Shape(30, 5120, 13824, 40, 40)
    grouped = whole.model_copy(update={"num_kv_heads": 8})
    assert parse_target("num_heads=20", grouped).num_kv_heads == 4
    assert shape_of(grouped).num_kv_heads == 8


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("num_layers=41", "num_layers=41: the model has 40"),
        ("num_heads=24", "hidden_size=5120: is not a multiple of num_heads=24; transformers"),
        ("num_heads=40,num_kv_heads=3", "num_heads=40: is not a multiple of num_kv_heads=3"),
        ("num_kv_heads=20", "2 query heads for each key/value head, the model has 1"),
        ("width=3", "write SIZE=NUMBER with one of num_layers"),
        ("num_layers=0", "'0' is not a positive whole number"),
        ("num_layers=3,num_hidden_layers=4", "num_layers is given twice"),
        ("intermediate_size=1001", "intermediate_size=1001: is not a multiple of the 8"),
    ],
)
def test_shapes_that_cannot_be(target, message):
    whole = ModelConfig(
        hidden_size=5120, intermediate_size=13824, num_layers=40, num_heads=40, vocab_size=32000
    )
    with pytest.raises(UserError, match=message):
        check_shape(parse_target(target, whole), whole, tensor_parallel=8)


def test_a_pruned_export_loads_in_transformers(tmp_path):
    """Heads stay as wide as they were, which only head_dim tells."""
    source = open_source(save(random_llama(**GQA), tmp_path / "in"))
    shape = Shape(3, 16, 24, 2, 1)
    selection = choose(random_scores(source.config, 1), shape, source.config)
    pruned = PrunedSource(source, selection, {})
    convert_to(pruned, tmp_path / "out", "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.head_dim == 8
    assert again.config.num_key_value_heads == 1
    tokens = random_tokens(101)
    np.testing.assert_allclose(
        transformers_logits(again, tokens), logits_of(pruned, tokens), atol=1e-4
    )
