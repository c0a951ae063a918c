"""Every reader of the project, as its command line uses it, each with the folder it reads.

A reader returns when its input is sound and gives what is read; it checks what must hold of any
input that is accepted: counts, ranges, dtypes, values that no damage may change.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from job_seeds import CACHE_KEY, IDENTITY, RECIPE, cached_arrays
from run_seeds import run_config
from seed_material import SENTENCES

from dongwu_jax.config import load_config
from dongwu_jax.data.chat_samples import ChatEncoder
from dongwu_jax.data.index_cache import IndexCache
from dongwu_jax.data.indexed_dataset import IndexedDataset, bin_path, idx_path
from dongwu_jax.data.jsonl import expand_inputs, parse_texts, read_blocks, read_lines
from dongwu_jax.data.preprocess_state import load_state
from dongwu_jax.data.teacher_cache import IDS, LOG_PROBABILITIES, TeacherCache
from dongwu_jax.data.tokenizers import load_tokenizer
from dongwu_jax.distill.corpus.decontamination import read_evaluation_sets
from dongwu_jax.distill.corpus.records import find_input, parse_sample
from dongwu_jax.distill.synthesis.manifest import describe, open_folder
from dongwu_jax.distill.synthesis.parts import PartFolder, documents_of
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.fineval import SUBJECTS, read_questions
from dongwu_jax.evaluate.texts import read_token_stream
from dongwu_jax.generate import read_prompts
from dongwu_jax.input_files import read_json
from dongwu_jax.interop.megatron.distributed import TorchDistSource
from dongwu_jax.interop.megatron.source import MegatronSource
from dongwu_jax.interop.safetensors_files import read_safetensors
from dongwu_jax.interop.sentencepiece_bpe import convert_sentencepiece
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.torch_files.reader import (
    Placeholder,
    StoredArray,
    read_pickle,
    read_torch_file,
)

_MOST_TOKENS = 400  # decoded one by one


@dataclass(frozen=True)
class Reader:
    """What reads a kind of input.

    Attributes:
        read: reads all of it; the input's folder is given.
        seed: name of the folder of a valid input.
        needs_jax: whether it loads JAX and Orbax.
        may_write: whether it may write into the input's folder, because going on with a job does.
        names: what may stand in an error instead of the path, where there is no file.
        memory_bytes: what it may take beyond what the process holds already.
    """

    read: Callable[[Path], object]
    seed: str
    needs_jax: bool = False
    may_write: bool = False
    names: tuple[str, ...] = ()
    memory_bytes: int = 3 << 29


def _jsonl(folder: Path) -> None:
    for path, number, line in read_lines(expand_inputs([f"{folder}/*.jsonl*"])):
        (texts,) = parse_texts(line, ["text"], path, number)
        assert number >= 1
        for text in texts:
            text.encode()


def _prompts(folder: Path) -> None:
    for name in ("prompts.jsonl", "prompts.txt"):
        for prompt in read_prompts(folder / name):
            prompt.encode()


def _indexed(folder: Path) -> None:
    for name in ("text", "pictures"):
        dataset = IndexedDataset(folder / name)
        for copy in (dataset, pickle.loads(pickle.dumps(dataset))):
            lengths = [len(copy.get(index)) for index in range(len(copy))]
            assert lengths == copy.sequence_lengths.tolist()
            assert sum(lengths) == copy.num_tokens
            assert copy.num_tokens * copy.dtype.itemsize == bin_path(copy.prefix).stat().st_size
            assert copy.document_indices[-1] == len(copy)
            assert idx_path(copy.prefix).stat().st_size >= 20 * len(copy)


def _tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    size = tokenizer.vocab_size
    for text in (*SENTENCES, "", "<s>x</s>", "\0\ufffd"):
        ids = tokenizer.encode(text)
        assert all(0 <= token < size for token in ids), f"ids {ids} of {size} tokens"
        tokenizer.decode(ids)
    for token in range(min(size, _MOST_TOKENS)):
        tokenizer.decode([token])
    special = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert all(token is None or 0 <= token < size for token in special), special


def _hugging_face_tokenizer(folder: Path) -> None:
    _tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    if hasattr(tokenizer, "prepends_bos"):
        assert isinstance(tokenizer.prepends_bos, bool)


def _sentencepiece(folder: Path) -> None:
    _tokenizer(folder)
    ours = load_tokenizer(folder)
    converted = convert_sentencepiece(folder / "tiny.model")
    for text in SENTENCES:
        ids = converted.encode(text, add_special_tokens=False).ids
        assert all(0 <= token < ours.vocab_size for token in ids)


def _chat(folder: Path) -> None:
    encoder = ChatEncoder(folder / "tokenizer")
    for block in read_blocks(folder / "chat.jsonl"):
        encoded = encoder.encode_block(block, skip_bad_lines=False)
        tokens, marks = encoded.by_key
        assert len(tokens.tokens) == len(marks.tokens) == tokens.lengths.sum()
        assert set(np.unique(marks.tokens)) <= {0, 1}


def _config(folder: Path) -> None:
    load_config(folder / "run.yaml").model_dump_json()


def _overrides(folder: Path) -> None:
    try:
        overrides = read_json(folder / "overrides.json")
    except UserError:
        return  # no command line
    words = overrides if isinstance(overrides, list) else []
    run = folder.parent / "run.yaml"
    run.write_text("model: {num_layers: 2}\n")
    texts = [word if isinstance(word, str) else f"model.num_layers={word}" for word in words]
    load_config(run, [text for text in texts if "\0" not in text])


def _safetensors(folder: Path) -> None:
    for array in read_safetensors(folder / "x.safetensors").values():
        _check_array(array, array.read())


def _check_array(stored: Any, values: np.ndarray) -> None:
    assert values.shape == tuple(stored.shape)
    assert values.dtype == stored.dtype


def _read_model(path: Path, base: Path | None = None) -> None:
    """Every tensor, shaped as the architecture says; moments and tokenizer, too."""
    source = open_source(path, base)
    try:
        shapes = {tensor.name: tensor.shape for tensor in _tensors(source)}
        assert set(source.names()) == set(shapes)
        for name in source.names():
            values = source.read(name)
            assert values.shape == shapes[name], name
        source.stored()
        assert source.iteration is None or source.iteration >= 0
        assert source.consumed_samples is None or source.consumed_samples >= 0
        if source.tokenizer is not None:
            _tokenizer(source.tokenizer)
    finally:
        source.close()


def _tensors(source: Any) -> Any:
    from dongwu_jax.interop.tensors import model_tensors

    return model_tensors(source.config)


def _gguf(folder: Path) -> None:
    _read_model(folder / "model.gguf")


def _megatron(folder: Path) -> None:
    _read_model(folder)
    source = open_source(folder)
    assert isinstance(source, MegatronSource | TorchDistSource)
    from dongwu_jax.interop.megatron.continuation import Continuation

    Continuation(folder)


def _torch(folder: Path) -> None:
    for name, read in (
        ("tree.pt", read_torch_file),
        ("bare.pickle", read_pickle),
        ("before_1_6.pt", _must_refuse),
    ):
        for leaf in _leaves(read(folder / name)):
            if isinstance(leaf, StoredArray):
                _check_array(leaf, leaf.read())


def _must_refuse(path: Path) -> None:
    """Of a format that is not read; whatever remains of it."""
    problem = ""
    try:
        read_torch_file(path)
    except UserError as error:
        problem = str(error)
    assert str(path) in problem


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for child in tree:
            yield from _leaves(child)
    elif not isinstance(tree, Placeholder):
        yield tree


_resumed: dict[str, list[bytes]] = {}  # of the sound checkpoint, which is read first


def _resume(folder: Path) -> None:
    import jax

    from dongwu_jax.data.fingerprint import fingerprint
    from dongwu_jax.parallel.layout import make_sharding
    from dongwu_jax.training.checkpoints.beginning_anew import check_may_begin
    from dongwu_jax.training.checkpoints.damaged import set_damaged_aside
    from dongwu_jax.training.checkpoints.integrity import is_verifiable
    from dongwu_jax.training.checkpoints.resume import check_same_data, check_same_run
    from dongwu_jax.training.checkpoints.store import Checkpoints
    from dongwu_jax.training.records.run_log import RunLog
    from dongwu_jax.training.state import abstract_state

    config = run_config(folder)
    current = fingerprint(config.data, 8)
    if set_damaged_aside(config.checkpoint.directory, RunLog(None)) is None:
        check_may_begin(config.checkpoint.directory, config.log_directory / "events.jsonl")
    checkpoints = Checkpoints(config.checkpoint)
    try:
        if checkpoints.latest_step is None:
            return  # a run that begins
        check_same_run(checkpoints.directory, config)
        sharding = make_sharding(config, jax.devices()[:1])
        state, data = checkpoints.restore(abstract_state(config, sharding))
        check_same_data(checkpoints.directory, data, current, config)
        if is_verifiable(checkpoints.directory / str(int(state.step))):
            content = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
            assert _resumed.setdefault("content", content) == content
    finally:
        checkpoints.close()


def _adapters(folder: Path) -> None:
    _read_model(folder / "checkpoints", folder / "base")


def _synthesis(folder: Path) -> None:
    """Go on with a job, and build a corpus of what there is."""
    output = folder / "output"
    (documents,) = expand_inputs([str(folder / "documents.jsonl")])
    open_folder(output, describe(RECIPE, "model", folder / "tokenizer.json", [documents]))
    parts = PartFolder(output)
    planned = parts.planned([documents], RECIPE.documents_per_part, None)
    for part in planned:
        assert len(list(documents_of(part, [documents]))) <= part.documents
        records, file = parts.begun(part.number)
        file.close()
        assert all(isinstance(record, dict) for record in records)
    found = find_input([str(output)])
    for path, number, line in read_lines(found.files):
        sample = parse_sample(line, path, number)
        sample.text.encode()
        sample.line()
        assert sample.tokens >= 0


def _teacher_cache(folder: Path) -> None:
    cache = TeacherCache(folder)
    for sample in range(cache.header.samples):
        entries = cache.read(sample)
        assert entries[IDS].min() >= 0
        assert entries[IDS].max() < cache.header.vocab_size
        assert np.isfinite(entries[LOG_PROBABILITIES]).all()


def _index_cache(folder: Path) -> None:
    arrays = IndexCache(folder).load_or_build(CACHE_KEY, cached_arrays)
    for name, expected in cached_arrays().items():
        np.testing.assert_array_equal(arrays[name], expected)
        assert arrays[name].dtype == expected.dtype


def _preprocess_state(folder: Path) -> None:
    state = load_state(folder / "x.state.partial", IDENTITY)
    if state is None:
        return
    numbers = [state.file, state.offset, state.line, state.bad_lines, *state.written[0]]
    assert all(type(number) is int and number >= 0 for number in numbers), state
    assert state.file < len(IDENTITY["inputs"])


def _fineval(folder: Path) -> None:
    subject = min(SUBJECTS, key=lambda subject: subject.validation)
    for split, count in (("dev", 5), ("val", subject.validation)):
        questions = read_questions(folder, subject, split)  # type: ignore[arg-type]
        assert len(questions) == count
        assert all(isinstance(text, str) for question in questions for text in question.values())


def _questions(folder: Path) -> None:
    files = [path for path in sorted(folder.iterdir()) if path.suffix != ".folder"]
    for question in read_evaluation_sets(files):
        assert isinstance(question.text, str)


def _evaluation_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer")
    for name in ("a.jsonl.gz", "b.txt", "c"):
        stream = read_token_stream(folder / name, tokenizer, 200)
        assert stream.bounds[-1] == len(stream.tokens) == len(stream.given)
        assert stream.tokens.min() >= 0
        assert stream.tokens.max() < tokenizer.vocab_size


def _run_folder(folder: Path) -> None:
    from dongwu_jax.report.page import render
    from dongwu_jax.report.run_folder import read_run_folder

    render(read_run_folder(folder)).encode()


READERS: dict[str, Reader] = {
    "jsonl": Reader(_jsonl, "jsonl"),
    "prompts": Reader(_prompts, "prompts"),
    "indexed_dataset": Reader(_indexed, "indexed"),
    "sentencepiece": Reader(_sentencepiece, "sentencepiece"),
    "tokenizer_json": Reader(_hugging_face_tokenizer, "tokenizer"),
    "chat_template": Reader(_chat, "chat_template"),
    "chat_template_file": Reader(_chat, "chat_template_file"),
    "config": Reader(_config, "config"),
    "overrides": Reader(_overrides, "overrides", may_write=True, names=("override", "run.yaml")),
    "safetensors": Reader(_safetensors, "safetensors"),
    "torch": Reader(_torch, "torch"),
    "hf_sharded": Reader(_read_model, "hf_sharded"),
    "hf_quantized": Reader(_read_model, "hf_quantized"),
    "hf_bin": Reader(_read_model, "hf_bin"),
    "gguf": Reader(_gguf, "gguf"),
    "megatron": Reader(_megatron, "megatron", needs_jax=True),
    "megatron_legacy": Reader(_megatron, "megatron_legacy", needs_jax=True),
    "torch_dist": Reader(_megatron, "torch_dist", needs_jax=True),
    "meta": Reader(_read_model, "meta"),
    "synthesis": Reader(_synthesis, "synthesis", may_write=True),
    "teacher_cache": Reader(_teacher_cache, "teacher_cache"),
    # Its files are mapped: what is resident of them is no memory that is needed.
    "index_cache": Reader(_index_cache, "index_cache", may_write=True, memory_bytes=5 << 29),
    "preprocess_state": Reader(_preprocess_state, "preprocess_state"),
    "fineval": Reader(_fineval, "fineval"),
    "questions": Reader(_questions, "questions"),
    "evaluation_text": Reader(_evaluation_text, "evaluation_text"),
    "run_folder": Reader(_run_folder, "run_folder", needs_jax=True),
    # TensorStore reads a piece of an array whole, however large its file has become.
    "checkpoint": Reader(_read_model, "checkpoint", needs_jax=True, memory_bytes=5 << 29),
    "resume": Reader(_resume, "resume", needs_jax=True, may_write=True),
    "adapters": Reader(_adapters, "adapters", needs_jax=True, memory_bytes=5 << 29),
}
