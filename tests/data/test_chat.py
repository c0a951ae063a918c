"""Conversations: templates against transformers, marks of answers, packing, rows."""

import json

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from dongwu_jax.config.sections import DataConfig
from dongwu_jax.data.chat_dataset import ChatDataset
from dongwu_jax.data.chat_samples import ChatEncoder, ChatSettings, parse_conversation
from dongwu_jax.data.chat_template import ChatTemplate
from dongwu_jax.data.datasets import build_dataset
from dongwu_jax.data.indexed_dataset import IndexedDataset
from dongwu_jax.data.packing import pack
from dongwu_jax.data.preprocess import preprocess
from dongwu_jax.errors import UserError

CHAT_ML = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + '\n' + "
    "message['content'] + ' <|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
)
WORDS = [f"w{i}" for i in range(50)]
SPECIAL = ["<|im_start|>", "<|im_end|>", "system", "user", "assistant", "unk"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of words with a chat template."""
    place = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="unk"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(SPECIAL[:2])
    tokenizer.save(str(place / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": CHAT_ML,
    }
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place


def conversation(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def test_tokens_are_those_of_transformers(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = ChatEncoder(folder)
    for texts in (["w1 w2", "w3"], ["w1", "w2 w3", "w4 w5", "w6"]):
        messages = conversation(*texts)
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert encoder.encode(messages, "here").tokens.tolist() == expected


def test_answers_and_their_ends_are_trained_and_nothing_else(folder):
    sample = ChatEncoder(folder).encode(conversation("w1", "w2 w3", "w4", "w5"), "here")
    names = [*SPECIAL, *WORDS]
    trained = [names[token] for token in sample.tokens[sample.trained]]
    assert trained == ["w2", "w3", "<|im_end|>", "w5", "<|im_end|>"]


def test_prompt_and_response_are_a_conversation():
    line = b'{"prompt": "a", "response": "b"}'
    assert parse_conversation(line, "here") == conversation("a", "b")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "x.jsonl:3: is not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"text": "a"}', "needs `messages`, or `prompt` and `response`; has .'text'."),
        (b'{"messages": []}', "a list that is not empty"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', "message 1 needs a role of system"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "message 1 needs its text"),
    ],
)
def test_bad_lines_are_explained(line, message):
    with pytest.raises(UserError, match=message):
        parse_conversation(line, "x.jsonl:3")


def test_templates_do_not_reach_out_of_their_sandbox(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match="the chat template refuses this: .*unsafe"):
        ChatTemplate(tmp_path).render([])
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match="is no valid chat template"):
        ChatTemplate(tmp_path)


def test_a_template_that_rewrites_earlier_turns_is_refused(folder, tmp_path):
    only_last = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}>{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(only_last)
    with pytest.raises(UserError, match="writes message 2 otherwise when others follow"):
        ChatTemplate(tmp_path).answers(conversation("a", "b", "c", "d"))


@given(
    st.lists(st.integers(1, 20), max_size=60),
    st.integers(20, 40),
    st.randoms(use_true_random=False),
)
def test_packing_keeps_every_sample_once_and_no_row_overflows(lengths, capacity, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    rows = pack(lengths, order, capacity)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(sum(lengths[sample] for sample in row) <= capacity for row in rows)
    # First fit: no two rows could have been one, while all of them are open.
    room = sorted(sum(lengths[sample] for sample in row) for row in rows)
    assert len(room) < 2 or room[0] + room[1] > capacity


def test_long_packing_fills_its_rows():
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(5.5, 0.8, 20_000).astype(int) + 1, 2048)
    rows = pack(lengths, random.permutation(20_000).tolist(), 2048)
    assert lengths.sum() / (2048 * len(rows)) > 0.98


@pytest.fixture(scope="module")
def prefix(folder, tmp_path_factory):
    """60 conversations of 1 to 12 words an answer, as a dataset."""
    place = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(1)
    with (place / "sft.jsonl").open("w") as file:
        for _ in range(60):
            texts = [" ".join(random.choice(WORDS, random.integers(1, 13))) for _ in range(2)]
            file.write(json.dumps({"messages": conversation(*texts)}) + "\n")
    preprocess(ChatSettings(folder), [place / "sft.jsonl"], place / "sft")
    return place / "sft_chat"


def rows_of(prefix, count, **settings):
    config = DataConfig(
        blend=str(prefix), split="1,0,0", format="chat", sequence_length=48, **settings
    )
    dataset = build_dataset(config, "train", count, len(SPECIAL) + len(WORDS))
    return dataset, [dataset[number] for number in range(count)]


def test_rows_hold_whole_conversations_apart(prefix):
    tokens = IndexedDataset(prefix)
    marks = IndexedDataset(prefix.with_name("sft_chat_trained"))
    wanted = {}
    for number in range(len(tokens)):
        ids, trained = tokens.get(number), marks.get(number)
        key = (tuple(ids[:-1]), tuple(ids[1:]), tuple(trained[1:].astype(float)))
        wanted[key] = wanted.get(key, 0) + 1
    dataset, _ = rows_of(prefix, 1)
    found: dict = {}
    number = 0
    while sum(found.values()) < len(tokens):
        row = dataset[number]
        number += 1
        for segment in range(1, row["segments"].max() + 1):
            here = row["segments"] == segment
            assert (row["positions"][here] == np.arange(here.sum())).all()
            names = ("tokens", "labels", "loss_mask")
            key = tuple(tuple(row[name][here]) for name in names)
            found[key] = found.get(key, 0) + 1
        assert not row["loss_mask"][row["segments"] == 0].any()
    assert found == wanted


def test_rows_do_not_depend_on_the_order_of_reading(prefix):
    _, straight = rows_of(prefix, 60)
    dataset, _ = rows_of(prefix, 1)
    for number in (59, 3, 40, 0, 59):
        for name, values in dataset[number].items():
            np.testing.assert_array_equal(values, straight[number][name])
    assert not all(
        (a["tokens"] == b["tokens"]).all()
        for a, b in zip(straight[:30], straight[30:], strict=True)
    )


def test_too_long_conversations_are_dropped_or_cut(prefix, caplog):
    config = {"blend": str(prefix), "split": "1,0,0", "format": "chat", "sequence_length": 16}
    vocab = len(SPECIAL) + len(WORDS)
    dropped = build_dataset(DataConfig(**config), "train", 1, vocab)
    cut = build_dataset(DataConfig(**config, too_long="truncate"), "train", 1, vocab)
    assert isinstance(dropped, ChatDataset)
    assert isinstance(cut, ChatDataset)
    assert 0 < len(dropped._chosen) < len(cut._chosen) <= 60
    assert "are longer than data.sequence_length=16 and are left out" in caplog.text
    for number in range(20):
        assert cut[number]["tokens"].shape == (16,)
    with pytest.raises(UserError, match="none of 60 conversations fits"):
        build_dataset(DataConfig(**config | {"sequence_length": 2}), "train", 1, vocab)


def test_text_is_no_chat(prefix, tmp_path):
    for suffix in (".bin", ".idx"):
        (tmp_path / f"text{suffix}").write_bytes(prefix.with_suffix(suffix).read_bytes())
    with pytest.raises(UserError, match="is no dataset of conversations"):
        rows_of(tmp_path / "text", 1)
