"""Changes one input in one way, chosen by a seed, of all that its format allows."""

import contextlib
import io
import json
import random
import shutil
import zipfile
import zlib
from pathlib import Path

import format_mutations as formats
import yaml
import zstandard
from byte_mutations import damage_bytes
from google.protobuf.message import DecodeError
from tree_mutations import change_json, change_json_lines, change_yaml

_SWOLLEN_BYTES = 2 << 30  # takes no space on a disk: it is a hole


def mutate(folder: Path, draw: random.Random, cheap: bool = False) -> str:
    """Change one file below `folder`, now and then two; returns what was done to which.

    Args:
        cheap: without what takes seconds to make and to read.
    """
    done = []
    for _ in range(draw.choice((1, 1, 1, 1, 2))):
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file() and path.stat().st_size < _SWOLLEN_BYTES
        )
        if files:
            path = draw.choice(files)
            done.append(f"{_mutate_file(path, draw, cheap)} {path.relative_to(folder)}")
    return "; ".join(done)


def _mutate_file(path: Path, draw: random.Random, cheap: bool) -> str:
    if draw.random() < 0.08:
        return _replace_file(path, draw, cheap)
    data = path.read_bytes()
    if draw.random() < 0.7:
        with contextlib.suppress(*_NOT_OF_THE_FORMAT):  # a second change after a first
            changed = _change_content(path, data, draw, cheap)
            if changed is not None:
                path.write_bytes(changed)
                return "content of"
    path.write_bytes(damage_bytes(draw, data))
    return "bytes of"


_NOT_OF_THE_FORMAT = (
    *(ValueError, KeyError, IndexError, EOFError, OSError, OverflowError, AttributeError),
    *(RecursionError, zipfile.BadZipFile, zstandard.ZstdError, NotImplementedError),
    *(yaml.YAMLError, DecodeError, TypeError, zlib.error),
)


def _replace_file(path: Path, draw: random.Random, cheap: bool) -> str:
    kind = draw.choice(("empty", "missing", "folder", "loop", "dangling", "passwd", "swollen"))
    if kind == "swollen":
        with path.open("ab") as file:
            file.truncate(_SWOLLEN_BYTES >> 11 * cheap)
        return kind
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
        (path / "inside").write_bytes(b"x")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("../../nowhere")
    elif kind == "passwd":
        path.symlink_to("/etc/passwd")
    return kind


def _change_content(path: Path, data: bytes, draw: random.Random, cheap: bool) -> bytes | None:
    """The file with its content changed; None where its format is not known."""
    name = path.name
    if name.endswith(".gz"):
        return formats.damage_gzip(draw, data, change_json_lines, cheap)
    if name.endswith(".zst"):
        return formats.damage_zstd(draw, data, change_json_lines, cheap)
    if data[:4] == b"PK\3\4":
        return formats.damage_zip(draw, data)
    if name.endswith(".safetensors"):
        return formats.damage_safetensors(draw, data)
    if name.endswith(".gguf"):
        return formats.damage_gguf(draw, data)
    if name.endswith(".npy"):
        return formats.damage_npy(draw, data)
    if name.endswith(".model"):
        return formats.damage_sentencepiece(draw, data)
    if name == ".metadata" or name.endswith(".pickle"):
        return formats.damage_pickle(draw, data)
    if name.endswith(".distcp"):
        return _damage_embedded(draw, data)
    return _change_text(name, data, draw)


def _change_text(name: str, data: bytes, draw: random.Random) -> bytes | None:
    text = data.decode()
    if name.endswith((".yaml", ".yml")):
        changed = change_yaml(draw, text)
    elif name.endswith(".jinja"):
        changed = formats.change_template(draw, text)
    elif name == "tokenizer_config.json" and "chat_template" in text and draw.random() < 0.5:
        settings = json.loads(text)
        settings["chat_template"] = formats.change_template(draw, settings["chat_template"])
        changed = json.dumps(settings)
    elif name.endswith(".jsonl"):
        changed = change_json_lines(draw, text)
    elif text.lstrip()[:1] in ("{", "["):
        changed = change_json(draw, text)
    else:
        return None
    return changed.encode("utf-8", "surrogatepass")


def _damage_embedded(draw: random.Random, data: bytes) -> bytes:
    """A torch file within a larger one: its pickle changed, its length kept."""
    starts = [i for i in range(len(data)) if data.startswith(b"PK\3\4", i)]
    at = draw.choice(starts)
    with contextlib.suppress(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(data[at:])).close()
    stop = min(len(data), at + 600)
    changed = damage_bytes(draw, data[at:stop])[: stop - at].ljust(stop - at, b"\0")
    return data[:at] + changed + data[stop:]


def copy_seed(seed: Path, folder: Path) -> None:
    """Put a fresh copy of a valid input in the place of `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seed, folder, symlinks=True)
