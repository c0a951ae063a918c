"""vLLM loads exports unedited, and computes the same.

vLLM wants an environment of its own; the variable VLLM_PYTHON names its interpreter.
"""

import numpy as np
import pytest
from conversions import convert_to
from reference_models import TOKENIZER_VOCAB, logits_of, random_llama, save
from vllm_runs import need_vllm, run_in_vllm, tokenizer_folder

from dongwu_jax.config.rope_scaling import RopeScaling
from dongwu_jax.interop.sources import open_source

LENGTH, FACTOR = 512, 4
_SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    tokens = json.loads(sys.argv[2])
    model = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_num_seqs=1)
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0)
    output = model.generate([{"prompt_token_ids": tokens}], wanted)[0]
    given = [place[id].logprob for place, id in zip(output.prompt_logprobs[1:], tokens[1:])]
    length = model.llm_engine.model_config.max_model_len
    with open(sys.argv[3], "w") as file:
        json.dump({"log_probabilities": given, "max_model_len": length}, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn", "llama3"])
def test_it_reads_stretched_positions_as_we_do(kind, tmp_path):
    need_vllm()
    model = random_llama(
        vocab_size=TOKENIZER_VOCAB,
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH,
    )
    source = open_source(save(model, tmp_path / "in"))
    scaling = {
        "rope_scaling": RopeScaling(type=kind, factor=FACTOR),
        "max_position_embeddings": FACTOR * LENGTH,
    }
    source.config = source.config.model_copy(update=scaling)
    checkpoint = open_source(convert_to(source, tmp_path / "checkpoint", "dongwu"))
    folder = tmp_path / "out"
    convert_to(checkpoint, folder, "hf", tokenizer=tokenizer_folder(tmp_path))

    tokens = np.random.default_rng(0).integers(3, TOKENIZER_VOCAB, 3 * LENGTH)
    found = run_in_vllm(_SCRIPT, folder, tokens.tolist(), tmp_path)
    assert found["max_model_len"] == FACTOR * LENGTH

    ours = logits_of(source, tokens[None])
    log_probabilities = ours[0, :-1] - np.logaddexp.reduce(ours[0, :-1], axis=-1, keepdims=True)
    expected = log_probabilities[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(found["log_probabilities"], expected, atol=2e-3)
