"""Small valid inputs of every format, to be damaged: a folder for each reader.

Made by the libraries that own a format where there is one, else by the project's own writers.
"""

import csv
import gzip
import itertools
import json
import pickle
import shutil
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
import sentencepiece
import tokenizers
import yaml
import zstandard

from dongwu_jax.config import ModelConfig, RunConfig, parse_config
from dongwu_jax.data.index_cache import IndexCache
from dongwu_jax.data.indexed_dataset_writer import IndexedDatasetWriter, WriterPosition
from dongwu_jax.data.preprocess_state import PreprocessState, save_state
from dongwu_jax.data.teacher_cache import IDS, LOG_PROBABILITIES, CacheHeader, CacheWriter
from dongwu_jax.distill.synthesis.manifest import describe, open_folder
from dongwu_jax.distill.synthesis.parts import PartFolder
from dongwu_jax.distill.synthesis.recipe import Recipe, Sampling
from dongwu_jax.evaluate.fineval import SUBJECTS
from dongwu_jax.interop.conversion import TargetOptions, convert, make_target
from dongwu_jax.interop.sources import open_source
from dongwu_jax.interop.tensors import model_tensors

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
RECIPE = Recipe(
    text_key="text",
    template="continue",
    language="auto",
    prefix_tokens=(4, 8),
    min_document_tokens=4,
    rounds=1,
    seed=0,
    limit=None,
    documents_per_part=2,
    sampling=Sampling(16, 1.0, 0.95, 1.0),
)
IDENTITY = {"settings": {"json_keys": ["text"]}, "inputs": [["a.jsonl", 10, 3]]}
CACHE_KEY = {"kind": "fuzz", "seed": 3}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def cached_arrays() -> dict[str, np.ndarray]:
    """What the sample index of the seed holds."""
    return {"a": np.arange(7, dtype=np.int64), "b": np.ones((2, 3), np.int32)}


def build_seeds(root: Path) -> None:
    """Write all of them below `root`."""
    make = (_texts, _datasets, _tokenizers, _chat, _configs, _torch_files, _caches, _synthesis)
    for build in (*make, _evaluations, _run_folder, _models, _checkpoints):
        build(root)


def write_jsonl(path: Path, records: list[Any]) -> None:
    """Lines of JSON; compressed if the name says so."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text, mtime=0)
    elif path.suffix == ".zst":
        text = zstandard.ZstdCompressor().compress(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)


def _texts(root: Path) -> None:
    records = [{"text": text, "n": n, "tags": ["a", None]} for n, text in enumerate(SENTENCES * 3)]
    for name in ("plain.jsonl", "packed.jsonl.gz", "packed.jsonl.zst"):
        write_jsonl(root / "jsonl" / name, records)
    write_jsonl(root / "prompts" / "prompts.jsonl", [{"prompt": text} for text in SENTENCES])
    (root / "prompts" / "prompts.txt").write_text("\n".join(SENTENCES), encoding="utf-8")


def _datasets(root: Path) -> None:
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


def _tokenizers(root: Path) -> None:
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
    _dump(folder / "tokenizer_config.json", settings)
    _dump(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})


def _chat(root: Path) -> None:
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
        _dump(folder / "tokenizer" / "tokenizer_config.json", settings)
        write_jsonl(folder / "chat.jsonl", conversations)


def _configs(root: Path) -> None:
    folder = root / "config"
    folder.mkdir()
    base = {"model": MODEL | {"rope_scaling": {"type": "linear", "factor": 2.0}}}
    run = {
        "base": "base.yaml",
        "mesh": {"fsdp": 2},
        "data": {
            "blend": [{"prefix": "a", "weight": 0.5}, {"prefix": "b", "weight": 1.5}],
            "sequence_length": 32,
            "split": "98,1,1",
        },
        "training": {"duration": "100 steps", "global_batch_size": 8},
        "optimizer": {"learning_rate": 1e-3, "beta2": 0.95},
        "checkpoint": {"directory": "run/checkpoints"},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
    overrides = [
        "model.num_layers=4",
        "data.split='90,5,5'",
        "mesh.tensor=2",
        "optimizer.weight_decay=0.1",
    ]
    (root / "overrides").mkdir()
    _dump(root / "overrides" / "overrides.json", overrides)


def _torch_files(root: Path) -> None:
    import torch

    folder = root / "torch"
    folder.mkdir()
    tree = {
        "w": torch.arange(12, dtype=torch.float32).view(3, 4).T,
        "b": torch.ones(3, dtype=torch.bfloat16),
        "nested": OrderedDict(a=[1, 2.5, None, True, "x", b"y", (1, 2)], s={1, 2}),
        "empty": torch.zeros(0, 3),
    }
    torch.save(tree, folder / "tree.pt")
    torch.save(tree, folder / "before_1_6.pt", _use_new_zipfile_serialization=False)
    (folder / "bare.pickle").write_bytes(pickle.dumps(tree["nested"], 2))
    folder = root / "safetensors"
    folder.mkdir()
    arrays = {"w": np.ones((3, 4), np.float32), "n": np.arange(5), "none": np.zeros((0, 2))}
    safetensors.numpy.save_file(arrays, folder / "x.safetensors", metadata={"format": "pt"})


def _caches(root: Path) -> None:
    folder = root / "teacher_cache"
    data = {"order": "epoch", "seed": 0, "blend": []}
    header = CacheHeader("teacher", "0f" * 16, "float32", 50, 3, 4, 5, 2, data)
    writer = CacheWriter(folder, header)
    logits = np.random.default_rng(0).normal(size=(5, 4, 50))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-probabilities)[..., :3]
    top = np.take_along_axis(probabilities, ids, -1)
    with_tail = np.log(np.concatenate([top, 1 - top.sum(-1, keepdims=True)], -1))
    for part in range(header.parts):
        rows = header.samples_of(part)
        chosen = slice(rows.start, rows.stop)
        writer.write(part, {IDS: ids[chosen], LOG_PROBABILITIES: with_tail[chosen]})
    writer.finish()
    IndexCache(root / "index_cache").load_or_build(CACHE_KEY, cached_arrays)
    (root / "preprocess_state").mkdir()
    state = PreprocessState(0, 120, 4, 1, [WriterPosition(3, 3, 40)])
    save_state(root / "preprocess_state" / "x.state.partial", IDENTITY, state)


def _synthesis(root: Path) -> None:
    folder = root / "synthesis"
    output = folder / "output"
    output.mkdir(parents=True)
    documents = folder / "documents.jsonl"
    write_jsonl(documents, [{"text": text} for text in SENTENCES])
    tokenizer = root / "tokenizer" / "tokenizer.json"
    shutil.copy(tokenizer, folder / "tokenizer.json")
    open_folder(output, describe(RECIPE, "model", folder / "tokenizer.json", [documents]))
    parts = PartFolder(output)
    for part in parts.planned([documents], RECIPE.documents_per_part, None):
        parts.write(part.number, [_sample(n) for n in range(part.documents)], [_rejected()])
    (output / ".part-00001.begun").write_bytes(json.dumps(_sample(9)).encode() + b'\n{"id": "x')


def _sample(number: int) -> dict[str, Any]:
    return {
        "id": f"{number:032x}",
        "text": "The bank sells bonds.",
        "prefix": "The bank",
        "completion": " sells bonds.",
        "source": f"documents.jsonl:{number + 1}",
        "round": 0,
        "prefix_tokens": 2,
        "completion_tokens": 4,
        "finish_reason": "length",
        "template": "continue",
        "model": "model",
        "sampling": asdict(RECIPE.sampling),
        "seed": 7,
    }


def _rejected() -> dict[str, Any]:
    return {"source": "documents.jsonl:1", "kind": "short", "reason": "has 1 token"}


def _evaluations(root: Path) -> None:
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


def _run_folder(root: Path) -> None:
    folder = root / "run_folder"
    folder.mkdir()
    time = 1_000_000.0
    start = {"time": time, "event": "start", "began": time - 5, "step": 0, "steps": 8}
    start |= {"resumed": False, "previous_step": 0, "previous_time": None}
    start["config"] = run_config(folder).model_dump(mode="json")
    start |= {"parameters": 1234, "versions": {"jax": "1.2"}, "blend": [{"name": "a", "weight": 1}]}
    start["devices"] = {"kind": "cpu", "count": 1, "processes": 1, "host": "here"}
    events = [start, {"time": time + 2, "event": "compiled", "seconds": 2.0}]
    pause = {"what": "checkpoint", "step": 4, "seconds": 1}
    events.append({"time": time + 9, "event": "pause"} | pause)
    events.append({"time": time + 20, "event": "end", "reason": "finished", "step": 8})
    lines = [
        {"step": n, "time": time + 2 + n, "loss": 9.0 / n, "step_seconds": 1.0} for n in range(1, 9)
    ]
    lines.append({"step": 8, "time": time + 11, "validation_loss": 2.5})
    write_jsonl(folder / "events.jsonl", events)
    write_jsonl(folder / "metrics.jsonl", lines)
    result = {"protocol": "joined", "length": 32, "perplexity": 9.5, "tokens": 100, "documents": 3}
    _dump(folder / "perplexity.json", {"model": "m", "data": "d", "results": [result]})


def _models(root: Path) -> None:
    import torch

    config = ModelConfig.model_validate(MODEL)
    rng = np.random.default_rng(0)
    weights = [
        (tensor, rng.normal(size=tensor.torch_shape).astype(np.float32))
        for tensor in model_tensors(config)
    ]
    scratch = root / "scratch" / "model"
    _hugging_face(scratch, {t.hugging_face: w for t, w in weights}, root / "tokenizer")
    shutil.copytree(scratch, root / "hf_sharded")
    _divide(root / "hf_sharded")
    (root / "hf_bin").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(scratch / name, root / "hf_bin" / name)
    torch.save(
        {t.hugging_face: torch.from_numpy(w) for t, w in weights},
        root / "hf_bin" / "pytorch_model.bin",
    )
    options = {
        "hf_quantized": TargetOptions("hf", quantize="int8"),
        "megatron": TargetOptions("megatron", tensor_parallel=2, pipeline_parallel=2),
        "megatron_legacy": TargetOptions("megatron", naming="legacy"),
        "torch_dist": TargetOptions("torch_dist", iteration=7),
        "meta": TargetOptions("meta", tensor_parallel=2),
        "checkpoint": TargetOptions("dongwu"),
    }
    for name, target in options.items():
        source = open_source(scratch)
        convert(source, root / name, make_target(source, target))
    _gguf(root / "gguf", config, {t.gguf: w for t, w in weights}, root / "tokenizer")


def _hugging_face(folder: Path, weights: dict[str, np.ndarray], tokenizer: Path) -> None:
    shutil.copytree(tokenizer, folder)
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    _dump(folder / "config.json", fields)
    safetensors.numpy.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _divide(folder: Path) -> None:
    """The one file of weights into two and an index; positions are scaled, too."""
    fields = json.loads((folder / "config.json").read_bytes())
    fields["rope_scaling"] = {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32.0}
    _dump(folder / "config.json", fields)
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        safetensors.numpy.save_file({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    _dump(folder / "model.safetensors.index.json", index)


def _gguf(
    folder: Path, config: ModelConfig, weights: dict[str, np.ndarray], tokenizer: Path
) -> None:
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    described = json.loads((tokenizer / "tokenizer.json").read_bytes())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].__getitem__)
    tokens += [f"<unused{n}>" for n in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(merge) for merge in described["merges"]])
    writer.add_token_types([3 if n < 4 else 1 for n in range(VOCAB)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, values in weights.items():
        if values.ndim == 2 and "ffn_gate" in name:
            values = values.astype(np.float16)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _checkpoints(root: Path) -> None:
    """Runs as the trainer saves them, optimizer included: of a whole model, and of adapters."""
    dataset = root / "resume" / "text"
    dataset.parent.mkdir()
    for suffix in (".bin", ".idx"):
        shutil.copy(root / "indexed" / f"text{suffix}", f"{dataset}{suffix}")
    save_run(run_config(root / "resume"))
    shutil.copytree(root / "scratch" / "model", root / "adapters" / "base")
    for suffix in (".bin", ".idx"):
        shutil.copy(root / "indexed" / f"text{suffix}", root / "adapters" / f"text{suffix}")
    save_run(run_config(root / "adapters", rank=2))


def run_config(folder: Path, rank: int = 0) -> RunConfig:
    """A run in `folder`, of adapters on `folder/base` if they have a rank."""
    settings: dict[str, Any] = {
        "model": MODEL,
        "data": {"blend": str(folder / "text"), "sequence_length": 8},
        "training": {"duration": 4, "global_batch_size": 2, "micro_batch_size": 1},
        "precision": {"compute_dtype": "float32"},
        "checkpoint": {"directory": str(folder / "checkpoints"), "asynchronous": False},
    }
    if rank:
        settings["training"]["initial_weights"] = str(folder / "base")
        settings["lora"] = {"rank": rank, "alpha": 4.0}
    return parse_config(settings, "seed")


def save_run(config: RunConfig) -> None:
    """Write step 0 as a trainer does."""
    import jax

    from dongwu_jax.data.fingerprint import fingerprint
    from dongwu_jax.interop.loading import load_parameters
    from dongwu_jax.parallel.layout import make_sharding
    from dongwu_jax.training.checkpoints.base_weights import describe_base
    from dongwu_jax.training.checkpoints.store import Checkpoints
    from dongwu_jax.training.state import StartingPoint, initial_state

    state = initial_state(config, make_sharding(config, jax.devices()[:1]), StartingPoint())
    data: dict[str, Any] = {"fingerprint": fingerprint(config.data, 8), "consumed_samples": 0}
    tokenizer: list[Path] = []
    if config.lora.rank:
        source = open_source(config.training.initial_weights)
        data["base_weights"] = describe_base(load_parameters(source.read, source.config), "float32")
    else:
        tokenizer = sorted((config.checkpoint.directory.parents[1] / "tokenizer").iterdir())
    checkpoints = Checkpoints(config.checkpoint)
    checkpoints.save(state, config, data, tokenizer)
    checkpoints.close()


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
