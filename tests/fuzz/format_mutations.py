"""Ways to change files of a binary format that keep what surrounds the change sound.

Random bytes seldom get past a checksum, a compression or a length; these write them anew.
"""

import gzip
import io
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import zstandard
from byte_mutations import damage_bytes
from sentencepiece import sentencepiece_model_pb2
from tree_mutations import change_json

_BOMB_BYTES = {b"\n": 1 << 25, b"{}\n": 1 << 25, b" ": 5 << 26}  # the last: one line too long
_ATTACKS = (
    b"cposix\nsystem\n(Vtouch canary\ntR",
    b"(Vtouch canary\niposix\nsystem\n",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch canary\x85R",
    b"cbuiltins\neval\n(V__import__('os').system('touch canary')\ntR",
    b"cbuiltins\ngetattr\n(cbuiltins\ndict\nVfromkeys\ntR",
    b"ctorch.hub\nload\n(Vx\nVy\ntR",
)
_PICKLE_PIECES = (
    *_ATTACKS,
    *(b"N", b"\x88", b"K\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f"),
    *(b"]", b"}", b")", b"(", b"t", b"u", b"e", b"R", b"b", b"Q", b"\x93", b"0", b"1", b"2", b"."),
    *(b"h\x00", b"h\x01", b"q\x00", b"\x94", b"G\x7f\xf8" + bytes(6), b"X\x01\x00\x00\x00x"),
    *(b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"V../../x\n", b"I99999999999999999999\n"),
)
_TEMPLATES = (
    "{% for i in range(10**9) %}{% endfor %}x",
    "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10**12 }}",
    "{{ 9**9**9 }}",
    "{{ [0] * 10**12 }}",
    "{{ '%1000000000000d' % 1 }}",
    "{{ '{:>1000000000000}'.format(1) }}",
    "{{ 'x'.center(10**12) }}",
    "{{ messages|batch(10**12)|list }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception.__globals__['__builtins__']['__import__']('os').system('touch canary') }}",
    "{{ strftime_now.__self__.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{{ messages[0].clear() }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include '/etc/passwd' %}",
    "{% extends 'x' %}",
    "{% import 'os' as os %}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception() }}",
    "{{ 1 / 0 }}",
    "{{ messages[99]['content'] }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ strftime_now(1) }}",
    "{{ undefined.x.y }}",
    "{{ messages[0]['content'][10**30:] }}",
    "{{ lipsum(n=10**9) }}",
    "{{ 'a'|unknown }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if true %}" * 3000 + "{% endif %}" * 3000,
    "{{ 1 if",
    "\x00",
    "",
)
_EXTREME_INTEGERS = (0, 1, -1, 2, 99, 2**31 - 1, -(2**31))

Text = Callable[[random.Random, str], str]


def damage_zip(draw: random.Random, data: bytes) -> bytes:
    """A torch file with one member changed and a right checksum, or an unusual member."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    pickles = [i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")]
    at = draw.choice(pickles) if pickles and draw.random() < 0.6 else draw.randrange(len(members))
    name, content = members[at]
    compression = zipfile.ZIP_STORED
    kind = draw.randrange(12)
    if kind == 0:
        members[at] = (draw.choice(("../../x", "/etc/x", name + "x", "", "x" * 300)), content)
    elif kind == 1:
        members.append((draw.choice((name, "../../canary", "x/data.pkl")), content))
    elif kind == 2:
        del members[at]
    elif kind == 3:
        compression = zipfile.ZIP_DEFLATED
        members[at] = (name, bytes(1 << 26))
    elif name.endswith(".pkl"):
        members[at] = (name, damage_pickle(draw, content))
    else:
        members[at] = (name, damage_bytes(draw, content))
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", compression) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return output.getvalue()


def damage_pickle(draw: random.Random, data: bytes) -> bytes:
    """A pickle with instructions put in, or other bytes."""
    if draw.random() < 0.4:
        return damage_bytes(draw, data)
    if draw.random() < 0.1:
        return draw.choice(_ATTACKS) + b"."
    at = draw.randrange(len(data) + 1)
    stop = at + draw.choice((0, 0, 1, 2, 9))
    return data[:at] + draw.choice(_PICKLE_PIECES) + data[stop:]


def damage_safetensors(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file with another header, of the right length."""
    length = int.from_bytes(data[:8], "little")
    header = change_json(draw, data[8 : 8 + length].decode()).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def damage_npy(draw: random.Random, data: bytes) -> bytes:
    """A NumPy file with another description."""
    length = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + length].decode("latin-1")
    described = draw.choice(
        (
            text.replace("'descr': '", draw.choice(("'descr': '|O', 'x': '", "'descr': '<M"))),
            text.replace("(", f"({draw.choice((-1, 2**40, 2**62, 10**30, 0))}, "),
            text.replace("False", draw.choice(("True", "None", "__import__('os')"))),
            "{" * 3000,
            f"{{'descr': '{draw.choice(('<f8', '|V0', '|S9', '<U4', '|O'))}', "
            f"'fortran_order': False, 'shape': ({draw.choice((0, 1, 2**50))},)}}",
        )
    ).encode()
    described = described.ljust(length)[:60_000]
    return data[:8] + struct.pack("<H", len(described)) + described + data[10 + length :]


def damage_gguf(draw: random.Random, data: bytes) -> bytes:
    """A GGUF file with the value, or the type, of one field changed."""
    keys = [key for key in _GGUF_KEYS if key in data]
    key = draw.choice(keys)
    at = data.index(key) + len(key)
    if draw.random() < 0.2:
        changed = struct.pack("<I", draw.choice((*range(14), 2**31)))
    else:
        at += 4
        changed = draw.choice(
            [struct.pack("<I", n % 2**32) for n in _EXTREME_INTEGERS]
            + [struct.pack("<f", x) for x in (0.0, -1.0, float("nan"), float("inf"), 1e38)]
            + [struct.pack("<Q", n) for n in (0, 2**31, 2**32, 2**60, 2**64 - 1)]
        )
    return data[:at] + changed + data[at + len(changed) :]


_GGUF_KEYS = (
    *(b"general.architecture", b"llama.context_length", b"llama.embedding_length"),
    *(b"llama.block_count", b"llama.feed_forward_length", b"llama.attention.head_count_kv"),
    *(b"llama.attention.head_count", b"llama.attention.layer_norm_rms_epsilon"),
    *(b"llama.rope.freq_base", b"llama.rope.scaling.factor", b"llama.rope.scaling.type"),
    *(b"tokenizer.ggml.model", b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges"),
    *(b"tokenizer.ggml.token_type", b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id"),
    *(b"tokenizer.ggml.add_bos_token", b"tokenizer.chat_template", b"blk.0.attn_q.weight"),
    *(b"token_embd.weight", b"output_norm.weight", b"blk.1.ffn_down.weight"),
)


def damage_sentencepiece(draw: random.Random, data: bytes) -> bytes:
    """A SentencePiece model with a setting or a piece changed."""
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(data)
    spec, piece = model.trainer_spec, draw.choice(model.pieces)
    number = draw.choice(_EXTREME_INTEGERS)
    kind = draw.randrange(12)
    if kind <= 3:
        name = draw.choice(("unk_id", "bos_id", "eos_id", "pad_id", "vocab_size", "model_type"))
        setattr(spec, name, draw.choice((1, 2, 3, 4)) if name == "model_type" else number)
    elif kind == 4:
        piece.score = draw.choice((float("nan"), float("inf"), -1e38, 0.0))
    elif kind == 5:
        piece.type = draw.choice((1, 2, 3, 4, 5, 6))
    elif kind == 6:
        piece.piece = draw.choice(("", " ", "▁", model.pieces[0].piece, "x" * 9999, "\0", "<0x41>"))
    elif kind == 7:
        model.normalizer_spec.precompiled_charsmap = draw.choice(
            (b"x", draw.randbytes(64), struct.pack("<I", 2**32 - 1) + bytes(8), bytes(4))
        )
    elif kind == 8:
        del model.pieces[draw.randrange(len(model.pieces)) :]
    elif kind == 9:
        spec.byte_fallback = not spec.byte_fallback
        spec.unk_surface = draw.choice(("", "\0", "x" * 9999))
    elif kind == 10:
        model.pieces.add().CopyFrom(piece)
    else:
        model.denormalizer_spec.precompiled_charsmap = draw.randbytes(24)
    return model.SerializeToString()


def change_template(draw: random.Random, text: str) -> str:
    """A hostile chat template, or the given one damaged or with a hostile part."""
    kind = draw.randrange(4)
    if kind == 0:
        return damage_bytes(draw, text.encode()).decode("utf-8", "surrogateescape")
    if kind == 1:
        at = draw.randrange(len(text) + 1)
        return text[:at] + draw.choice(_TEMPLATES) + text[at:]
    return draw.choice(_TEMPLATES)


def damage_gzip(draw: random.Random, data: bytes, change: Text, cheap: bool) -> bytes:
    """Compressed text: other text, a bomb, two members, or damage."""
    kind = draw.randrange(8)
    if kind == 0 and not cheap:
        return _gzip_bomb(draw.choice((b"\n", b" ", b"{}\n")))
    if kind == 1:
        return data + draw.choice((data, b"x", bytes(64)))
    text = gzip.decompress(data).decode()
    return gzip.compress(change(draw, text).encode("utf-8", "surrogatepass"))


def damage_zstd(draw: random.Random, data: bytes, change: Text, cheap: bool) -> bytes:
    """As `damage_gzip`, for Zstandard."""
    kind = draw.randrange(8)
    if kind == 0 and not cheap:
        return _zstd_bomb(draw.choice((b"\n", b" ", b"{}\n")))
    if kind == 1:
        return data + draw.choice((data, b"x", bytes(64)))
    if kind == 2:  # a window of gigabytes, which a reader must keep in memory
        parameters = zstandard.ZstdCompressionParameters(window_log=30)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return compressor.compress(bytes(1 << 20)) + compressor.flush()
    text = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read().decode()
    content = change(draw, text).encode("utf-8", "surrogatepass")
    return zstandard.ZstdCompressor().compress(content)


@cache
def _gzip_bomb(unit: bytes) -> bytes:
    output = io.BytesIO()
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=1) as file:
        for _ in range(_BOMB_BYTES[unit] >> 20):
            file.write(unit * ((1 << 20) // len(unit)))
    return output.getvalue()


@cache
def _zstd_bomb(unit: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    block = unit * ((1 << 20) // len(unit))
    parts = [compressor.compress(block) for _ in range(_BOMB_BYTES[unit] >> 20)]
    return b"".join(parts) + compressor.flush()
