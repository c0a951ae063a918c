"""Seeds of texts: JSON lines, datasets, tokenizers, chats, evaluation sets."""

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from seed_material import CHAT_TEMPLATE, SENTENCES, VOCAB, dump, write_jsonl

from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter
from dongwu_jax.evaluate.fineval import SUBJECTS


def write_texts(root: Path) -> None:
    """JSON lines, packed ones too, and prompts."""
    records = [{"text": text, "n": n, "tags": ["a", None]} for n, text in enumerate(SENTENCES * 3)]
    for name in ("plain.jsonl", "packed.jsonl.gz", "packed.jsonl.zst"):
        write_jsonl(root / "jsonl" / name, records)
    write_jsonl(root / "prompts" / "prompts.jsonl", [{"prompt": text} for text in SENTENCES])
    (root / "prompts" / "prompts.txt").write_text("\n".join(SENTENCES), encoding="utf-8")


def write_datasets(root: Path) -> None:
    """A dataset of text and one of pictures."""
    folder = root / "indexed"
    folder.mkdir()
    for name, dtype, modes in (("text", np.uint16, False), ("pictures", np.int32, True)):
        with IndexedDatasetWriter(folder / name, np.dtype(dtype), multimodal=modes) as writer:
            if modes:
                writer.add_index(_multimodal(root / "scratch" / "source"))
                continue
            for number in range(5):
                tokens = np.arange(number * 3, dtype=dtype)
                writer.add_document(tokens, [len(tokens)])


def _multimodal(prefix: Path) -> Path:
    """A dataset with modes, bytes laid out by hand."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    lengths, offsets = np.array([2, 3], "<i4"), np.array([0, 8], "<i8")
    header = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\4"
    header += (2).to_bytes(8, "little") + (3).to_bytes(8, "little")
    tables = lengths.tobytes() + offsets.tobytes() + np.array([0, 1, 2], "<i8").tobytes()
    Path(f"{prefix}.idx").write_bytes(header + tables + bytes([0, 1]))
    Path(f"{prefix}.bin").write_bytes(np.arange(5, dtype="<i4").tobytes())
    return prefix


def write_tokenizers(root: Path) -> None:
    """A SentencePiece model and a folder of Hugging Face."""
    folder = root / "sentencepiece"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_prefix=str(folder / "tiny"),
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tiny.vocab").unlink()
    folder = root / "tokenizer"
    folder.mkdir()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    dump(folder / "tokenizer_config.json", settings)
    dump(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})


def write_chat(root: Path) -> None:
    """Conversations, with the template in the settings and in a file of its own."""
    conversations = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in itertools.pairwise(SENTENCES)
    ]
    conversations.append({"prompt": "a", "response": "b"})
    for name, own_file in (("chat_template", False), ("chat_template_file", True)):
        folder = root / name
        shutil.copytree(root / "tokenizer", folder / "tokenizer")
        settings = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_bytes())
        if own_file:
            (folder / "tokenizer" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        else:
            settings["chat_template"] = CHAT_TEMPLATE
        dump(folder / "tokenizer" / "tokenizer_config.json", settings)
        write_jsonl(folder / "chat.jsonl", conversations)


def write_evaluations(root: Path) -> None:
    """FinEval's smallest subject, questions for decontamination, texts for perplexity."""
    folder = root / "fineval"
    subject = min(SUBJECTS, key=lambda subject: subject.validation)
    for split, count in (("dev", 5), ("val", subject.validation)):
        (folder / split).mkdir(parents=True)
        path = folder / split / f"{subject.name}_{split}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "question", "A", "B", "C", "D", "answer", "explanation"])
            for n in range(count):
                writer.writerow(
                    [n, f"问题，{n}\n（二）", '"甲"', "乙", "丙", "丁", "ABCD"[n % 4], ""]
                )
    folder = root / "questions"
    write_jsonl(folder / "a.jsonl", [{"question": text} for text in SENTENCES])
    write_jsonl(folder / "b.jsonl.zst", [{"text": text} for text in SENTENCES])
    (folder / "c.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    (folder / "d.csv").write_text("question,A,B\nWhat?,1,2\nWhy?,3,4\n", encoding="utf-8")
    folder = root / "evaluation_text"
    shutil.copytree(root / "tokenizer", folder / "tokenizer")
    write_jsonl(folder / "a.jsonl.gz", [{"text": text} for text in SENTENCES])
    (folder / "b.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    for suffix in (".bin", ".idx"):
        shutil.copy(root / "indexed" / f"text{suffix}", folder / f"c{suffix}")
