"""Our logits against transformers', in float32, from the same files."""

import numpy as np
import pytest
import torch
import transformers
from conversions import convert_to
from reference_models import (
    TINY,
    logits_of,
    our_logits,
    random_llama,
    random_tokens,
    randomize_vectors,
    save,
    smollm2_file,
    transformers_logits,
)

from dongwu_jax.data.tokenizers import load_tokenizer
from dongwu_jax.interop.loading import load_parameters
from dongwu_jax.interop.sources import open_source

TEXTS = (
    "The committee decided to lower the target range for the federal funds rate by a quarter of a "
    "point. Inflation has made progress toward the objective but remains somewhat elevated. ",
    "证券公司应当建立健全内部控制制度，采取有效隔离措施，防范公司与客户之间、不同客户之间的利益冲突。",
)

SHAPES = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "odd sizes": {
        "hidden_size": 36,
        "intermediate_size": 53,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
    "wide heads": {"head_dim": 18},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 250.0}},
    "linear scaling": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 500.0,
        }
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "rope_theta": 500.0,
        }
    },
    "epsilon": {"rms_norm_eps": 0.1},
    "qkv bias": {"attention_bias": True},
}


def _largest_difference(model, folder, tokens):
    source = open_source(save(model, folder))
    ours = logits_of(source, tokens)
    theirs = transformers_logits(model, tokens)
    assert np.abs(theirs).max() > 1
    return np.abs(ours - theirs).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_logits_equal_transformers(shape, tmp_path):
    model = random_llama(**SHAPES[shape])
    assert _largest_difference(model, tmp_path, random_tokens(TINY["vocab_size"])) < 1e-4


@pytest.mark.parametrize(
    ("config_class", "model_class", "changes"),
    [
        (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
        (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": None}),
    ],
    ids=["qwen2", "mistral"],
)
def test_llama_shaped_relatives_equal_transformers(config_class, model_class, changes, tmp_path):
    torch.manual_seed(0)
    model = model_class(config_class(**TINY | {"num_key_value_heads": 2} | changes)).eval()
    randomize_vectors(model)
    assert _largest_difference(model, tmp_path, random_tokens(TINY["vocab_size"])) < 1e-4


@pytest.mark.parametrize("name", ["mha_untied", "gqa_untied", "mha_tied"])
def test_logits_equal_recorded_reference(name, shared_data):
    folder = shared_data / "megatron/ckpt/hf" / name
    source = open_source(folder)
    reference = np.load(folder / "reference_hf.npz")
    ours = our_logits(
        source.config, load_parameters(source.read, source.config), reference["input_ids"]
    )
    assert np.abs(ours - reference["logits"]).max() < 1e-4


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The model in a Hugging Face folder, float32, and [8, 128] tokens of English and Chinese."""
    source = open_source(smollm2_file())
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    convert_to(source, folder, "hf")
    tokenizer = load_tokenizer(folder)
    tokens = [tokenizer.encode(text * 20)[:512] for text in TEXTS]
    return (
        folder,
        source.config,
        load_parameters(source.read, source.config),
        np.reshape(tokens, (8, 128)),
    )


@pytest.mark.slow
def test_smollm2_logits_equal_transformers(smollm2):
    folder, config, parameters, tokens = smollm2
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = transformers_logits(model, tokens)
    ours = our_logits(config, parameters, tokens)
    assert np.abs(ours - theirs).max() < 5e-4
    # Logits reach 43, and how far float32 is from float64 depends on the CPU: transformers' own
    # is the measure.
    exact = transformers_logits(model.double(), tokens)
    our_error, their_error = (np.abs(logits - exact) for logits in (ours, theirs))
    assert np.quantile(our_error, 0.999) < 2 * np.quantile(their_error, 0.999) < 2e-4
    assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.999


@pytest.mark.slow
def test_smollm2_in_bfloat16_is_as_faithful_as_transformers(smollm2):
    """Where float32 sees a clear winner, bfloat16 chooses it; elsewhere ours is no worse."""
    folder, config, parameters, tokens = smollm2
    exact = our_logits(config, parameters, tokens)
    ours = our_logits(config, parameters, tokens, "bfloat16").argmax(-1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    theirs = transformers_logits(model, tokens).argmax(-1)
    second, first = np.partition(exact, -2)[..., -2:].transpose(2, 0, 1)
    clear, winner = first - second > 0.25, exact.argmax(-1)  # bfloat16 steps by 0.25 above 32
    assert (ours == winner)[clear].mean() > 0.99
    assert (ours == winner).mean() > (theirs == winner).mean() - 0.01
