"""What seeds of several formats are made of."""

import gzip
import json
from pathlib import Path
from typing import Any

import zstandard

VOCAB = 320
MODEL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "max_position_embeddings": 32,
}
SENTENCES = (
    "The central bank sells government bonds; cash and credit tighten.",
    "证券法规定，上市公司应当披露年度报告。投资者应当注意风险。",
    "In 2023 the rate was 4.25 %, in 1998 it was 12 %.",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_jsonl(path: Path, records: list[Any]) -> None:
    """Lines of JSON; compressed if the name says so."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text, mtime=0)
    elif path.suffix == ".zst":
        text = zstandard.ZstdCompressor().compress(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)


def dump(path: Path, content: Any) -> None:
    """A file of JSON."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
