"""vLLM loads 8-bit exports unedited, and computes nearly what their weights say.

vLLM wants an environment of its own; the variable VLLM_PYTHON names its interpreter.
"""

import numpy as np
import pytest
from conversions import convert_to
from reference_models import TOKENIZER_VOCAB, logits_of, random_llama, save
from vllm_runs import need_vllm, run_in_vllm, tokenizer_folder

from dongwu_jax.interop.sources import open_source

_SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    tokens = json.loads(sys.argv[2])
    # On a CPU it multiplies 8-bit integers for models in bfloat16 alone.
    model = LLM(sys.argv[1], dtype="bfloat16", enforce_eager=True, max_num_seqs=1)
    wanted = SamplingParams(max_tokens=4, prompt_logprobs=0, ignore_eos=True)
    output = model.generate([{"prompt_token_ids": tokens}], wanted)[0]
    given = [place[id].logprob for place, id in zip(output.prompt_logprobs[1:], tokens[1:])]
    found = {
        "log_probabilities": given,
        "generated": list(output.outputs[0].token_ids),
        "quantization": model.llm_engine.model_config.quantization,
    }
    with open(sys.argv[3], "w") as file:
        json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", 0.05), ("fp8", 0.12)])
def test_it_loads_8_bits(quantization, tolerance, tmp_path):
    need_vllm()
    model = random_llama(
        vocab_size=TOKENIZER_VOCAB,
        hidden_size=128,
        intermediate_size=192,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.1,
    )
    source = open_source(save(model, tmp_path / "in"))
    folder = tmp_path / "out"
    convert_to(
        source,
        folder,
        "hf",
        dtype="bfloat16",
        tokenizer=tokenizer_folder(tmp_path),
        max_shard_bytes=100_000,
        quantize=quantization,
    )

    tokens = np.random.default_rng(0).integers(3, TOKENIZER_VOCAB, 48)
    found = run_in_vllm(_SCRIPT, folder, tokens.tolist(), tmp_path)
    assert found["quantization"] == "compressed-tensors"
    assert len(found["generated"]) == 4

    ours = logits_of(open_source(folder), tokens[None])
    log_probabilities = ours[0, :-1] - np.logaddexp.reduce(ours[0, :-1], axis=-1, keepdims=True)
    expected = log_probabilities[np.arange(len(tokens) - 1), tokens[1:]]
    # It rounds the activations to 8 bits as well; in fp8 they have 4 significant bits.
    error = np.abs(np.array(found["log_probabilities"]) - expected)
    assert error.mean() < tolerance * expected.std()
