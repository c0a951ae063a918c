"""Exported tokenizers against sentencepiece and the original files, through transformers."""

import json

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import train_tiny_tokenizer

from dongwu_jax.data.tokenizers import load_tokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.interop.hf_tokenizer import write_hugging_face_tokenizer
from dongwu_jax.interop.sentencepiece_bpe import convert_sentencepiece

TEXTS = [
    "",
    " ",
    "  two spaces, then one ",
    "\n\ttabs\n\n  lines  \n",
    "def f(x):\n    if x:\n        return  1  # 注",
    "证券法规定，上市公司应当披露年度报告。",
    "12345 3.14 %",
    "emoji 😀 and \u3000 wide space, ﬁ ligature",
]
VARIANTS = {
    "llama": {},
    "no prefix": {"add_dummy_prefix": False},
    "trimmed spaces": {"remove_extra_whitespaces": True},
    "nfkc": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "user symbols": {"user_defined_symbols": ["<sep>", "  ", "1"]},
    "no bytes": {"byte_fallback": False},
}
fragments = st.sampled_from(
    [
        "  ",
        " ",
        "    ",
        "\n",
        "\t",
        "bond",
        "return",
        "证",
        "券",
        "1",
        "。",
        "😀",
        "é",
        "<sep>",
        "re",
    ]
)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    path = train_tiny_tokenizer(folder, **VARIANTS[request.param])
    return sentencepiece.SentencePieceProcessor(model_file=str(path)), convert_sentencepiece(path)


@settings(max_examples=150)
@given(parts=st.lists(fragments, max_size=20))
def test_conversion_gives_the_ids_of_sentencepiece(pair, parts):
    original, converted = pair
    text = "".join(parts)
    assert converted.encode(text, add_special_tokens=False).ids == original.encode(text)


def test_transformers_tokenizes_the_export_like_sentencepiece(tmp_path):
    model = train_tiny_tokenizer(tmp_path)
    write_hugging_face_tokenizer(model, tmp_path, max_length=77)
    original = sentencepiece.SentencePieceProcessor(model_file=str(model))
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    for text in TEXTS:
        ids = exported(text)["input_ids"]
        assert ids == [1, *original.encode(text)]
        assert exported.decode(ids, skip_special_tokens=True) == original.decode(ids[1:])
    assert (exported.bos_token_id, exported.eos_token_id, exported.unk_token_id) == (1, 2, 0)
    assert exported.model_max_length == 77


def test_real_vocabulary_and_text(shared_data, tmp_path):
    path = shared_data / "megatron/data/tokenizers/mistral_v1_32k.model"
    original = sentencepiece.SentencePieceProcessor(model_file=str(path))
    converted = convert_sentencepiece(path)
    lines = [
        line
        for name in ("en", "zh")
        for line in (shared_data / f"megatron/data/raw/{name}.jsonl").read_text().splitlines()[:60]
    ]
    for text in [json.loads(line)["text"] for line in lines]:
        assert converted.encode(text, add_special_tokens=False).ids == original.encode(text)


def test_tokenizer_json_is_copied_with_its_settings(tmp_path):
    write_hugging_face_tokenizer(train_tiny_tokenizer(tmp_path), tmp_path, max_length=10)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    copy = tmp_path / "copy"
    copy.mkdir()
    write_hugging_face_tokenizer(tmp_path, copy, max_length=20)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (copy / name).read_bytes() == (tmp_path / name).read_bytes()
    again = load_tokenizer(copy)
    assert (again.bos_id, again.eos_id) == (1, 2)
    assert json.loads((copy / "tokenizer_config.json").read_text())["model_max_length"] == 20


def test_unigram_models_are_refused(tmp_path):
    path = train_tiny_tokenizer(tmp_path, model_type="unigram")
    with pytest.raises(UserError, match="type BPE"):
        convert_sentencepiece(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        convert_sentencepiece(path)
