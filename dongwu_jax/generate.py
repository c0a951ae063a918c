"""Sampling from a model with a key/value cache: a function for programs, and a command line.

Example:
    python -m dongwu_jax.generate --model export/finance --prompt "The central bank" --seed 1
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from dongwu_jax.command_line import run_command_line
from dongwu_jax.config import ModelConfig
from dongwu_jax.data.bos import beginning_ids
from dongwu_jax.data.tokenizers import Tokenizer
from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_text
from dongwu_jax.interop.loaded_model import load_model
from dongwu_jax.models.decoding import cached_hidden_states, empty_cache
from dongwu_jax.models.llama import Llama
from dongwu_jax.models.parameters import Parameters, bind

_ROUND_TO = 64  # lengths are rounded up, so that similar prompts share a compiled program


def generate(
    config: ModelConfig,
    parameters: Parameters,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
    rows: NamedSharding | None = None,
) -> list[list[int]]:
    """Continue each prompt.

    Computes in the dtype of the matrices of `parameters`. A prompt's continuation does not depend
    on the lengths of the others; with the same seed, row and shapes it is always the same.

    Args:
        prompts: token ids, at least one each; lengths may differ.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: sample from the most likely tokens whose probabilities reach this sum.
        eos_id: ends a continuation; None: only `max_new_tokens` does.
        rows: how devices share the prompts, whose number they must divide; None: one has all.

    Returns:
        The new tokens of each prompt, without `eos_id`.

    Raises:
        UserError: a prompt is empty or too long, or a setting is out of range.
    """
    _check_settings(max_new_tokens, temperature, top_p, seed)
    _check_prompts(config, prompts, max_new_tokens)
    lengths = [len(prompt) for prompt in prompts]
    width = _round_up(max(lengths))
    padded = np.zeros((len(prompts), width), np.int32)  # right padding is overwritten before use
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    tokens = _continue(
        config,
        parameters,
        *jax.device_put((padded, np.asarray(lengths, np.int32)), rows),
        max_new_tokens,
        jnp.float32(temperature),
        jnp.float32(top_p),
        jax.random.key(seed),
        -1 if eos_id is None else eos_id,
        capacity=_round_up(max(lengths) + max_new_tokens),
        greedy=temperature == 0,
        rows=rows,
    )
    whole = np.asarray(tokens)
    new = [row[n : n + max_new_tokens].tolist() for row, n in zip(whole, lengths, strict=True)]
    return [ids[: ids.index(eos_id)] if eos_id in ids else ids for ids in new]


def _check_settings(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature}: must be a number of at least 0")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: must be above 0 and at most 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be 0 or more and below {2**32}")


def _check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("a prompt is empty; give at least one token, e.g. the beginning token")
    longest = max(map(len, prompts))
    if longest + max_new_tokens > config.max_position_embeddings:
        raise UserError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed the model's "
            f"max_position_embeddings={config.max_position_embeddings}; shorten one of them"
        )
    for prompt in prompts:
        if not all(0 <= token < config.vocab_size for token in prompt):
            raise UserError(
                f"a prompt holds a token outside 0..{config.vocab_size - 1}: the tokenizer does "
                "not belong to this model"
            )


@functools.partial(jax.jit, static_argnames=("config", "capacity", "greedy", "rows"))
def _continue(
    config: ModelConfig,
    parameters: Parameters,
    prompts: jax.Array,
    lengths: jax.Array,
    max_new_tokens: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    key: jax.Array,
    eos_id: jax.Array,
    capacity: int,
    greedy: bool,
    rows: NamedSharding | None,
) -> jax.Array:
    """Prompts [batch, width] with their continuations behind them, int32 [batch, capacity]."""
    model = bind(config, parameters)
    batch, width = prompts.shape
    row = jnp.arange(batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, row)

    def choose(logits: jax.Array, step: jax.Array) -> jax.Array:
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return _sample(
            logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step), temperature, top_p
        )

    def unfinished(state: tuple) -> jax.Array:
        step, done, *_ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def decode(state: tuple) -> tuple:
        step, done, tokens, cache = state
        positions = lengths + step - 1
        hidden, cache = cached_hidden_states(
            model, tokens[row, positions][:, None], positions[:, None], cache
        )
        chosen = choose(_next_logits(model, hidden[:, 0]), step)
        tokens = tokens.at[row, positions + 1].set(chosen)
        return step + 1, done | (chosen == eos_id), tokens, cache

    positions = jnp.broadcast_to(jnp.arange(width), prompts.shape)
    empty = empty_cache(model, batch, capacity)
    if rows is not None:
        empty = jax.lax.with_sharding_constraint(empty, rows)
    hidden, cache = cached_hidden_states(model, prompts, positions, empty)
    first = choose(_next_logits(model, hidden[row, lengths - 1]), jnp.int32(0))
    tokens = jnp.pad(prompts, ((0, 0), (0, capacity - width))).at[row, lengths].set(first)
    return jax.lax.while_loop(unfinished, decode, (jnp.int32(1), first == eos_id, tokens, cache))[2]


def _next_logits(model: Llama, hidden: jax.Array) -> jax.Array:
    """[batch, embed] -> float32 [batch, vocab], without padding rows of the vocabulary.

    Never rounded to bfloat16, where the largest logits of a row are often equal.
    """
    head = model.head()[:, : model.config.vocab_size]
    return jnp.einsum("bd,dv->bv", hidden, head, preferred_element_type=jnp.float32)


def _sample(
    logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> jax.Array:
    """One token of each row from the nucleus (Holtzman et al. 2020), int32 [batch]."""
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(logits, order, axis=-1) / temperature
    probabilities = jax.nn.softmax(ordered, axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    nucleus = jnp.where(mass_before < top_p, ordered, -jnp.inf)
    chosen = jax.vmap(jax.random.categorical)(keys, nucleus)
    return jnp.take_along_axis(order, chosen[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _round_up(length: int) -> int:
    return -(-length // _ROUND_TO) * _ROUND_TO


def main(arguments: list[str] | None = None) -> int:
    """Parse, load, generate, print."""
    options = _parse(arguments)
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: must be at least 1")
    texts = [
        *map(_checked_prompt, options.prompt),
        *(read_prompts(options.prompts_file) if options.prompts_file else []),
    ]
    if not texts:
        raise UserError("no prompt: use --prompt or --prompts-file")
    # Before minutes of loading a model.
    _check_settings(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    completions = _complete(options, texts)
    if len(texts) == 1:
        print(texts[0] + completions[0])
        return 0
    for prompt, completion in zip(texts, completions, strict=True):
        print(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False))
    return 0


def _complete(options: argparse.Namespace, texts: list[str]) -> list[str]:
    """The text that follows each prompt, `--batch-size` prompts at a time."""
    model = load_model(options.model, options.dtype, options.tokenizer)
    tokenizer = model.tokenizer
    start = beginning_ids(tokenizer)
    prompts = [start + tokenizer.encode(text) for text in texts]
    completions = []
    for first in range(0, len(prompts), options.batch_size):
        new = generate(
            model.config,
            model.parameters,
            prompts[first : first + options.batch_size],
            options.max_new_tokens,
            options.temperature,
            options.top_p,
            options.seed + first,
            tokenizer.eos_id,
        )
        completions += new
    return [
        _continuation(tokenizer, prompt, new)
        for prompt, new in zip(prompts, completions, strict=True)
    ]


def _continuation(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    """The text that new tokens add; decoded alone they would lose a leading space."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + new)
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(new)


def _checked_prompt(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt: is not UTF-8 at character {error.start + 1}") from None
    return text


def read_prompts(path: Path) -> list[str]:
    """One prompt a line: JSON objects with the key `prompt` in a .jsonl file, else plain text."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if path.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompt = json.loads(line)["prompt"]
            prompt.encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f'{path}: prompt {number} is not a line such as {{"prompt": "..."}}'
            ) from None
        prompts.append(prompt)
    return prompts


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dongwu_jax.generate",
        description="Continue prompts with a model. One prompt is printed with its continuation, "
        "several as JSON lines.",
        epilog='example: python -m dongwu_jax.generate --model export/finance --prompt "Bonds are" '
        "--max-new-tokens 64 --temperature 0.8 --top-p 0.95",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="any format that tools/convert.py reads")
    add("--prompt", action="append", default=[], help="a text to continue; may be repeated")
    add("--prompts-file", type=Path, help="one prompt a line; in .jsonl under the key prompt")
    add("--max-new-tokens", type=int, default=64, help="longest continuation (default 64)")
    add("--temperature", type=float, default=0.8, help="0: most likely token (default 0.8)")
    add("--top-p", type=float, default=0.95, help="probability mass sampled from (default 0.95)")
    add("--seed", type=int, default=0, help="same seed, same text (default 0)")
    add("--batch-size", type=int, default=16, help="prompts continued at once (default 16)")
    add("--dtype", choices=["float32", "bfloat16"], help="default: float32 on CPU, else bfloat16")
    add("--tokenizer", type=Path, help="tokenizer to use instead of the model's own")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command_line(main)
