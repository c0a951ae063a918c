"""A model for lm-evaluation-harness, which follows the harness's own Hugging Face backend."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from dongwu_jax.data.bos import beginning_ids
from dongwu_jax.errors import UserError
from dongwu_jax.evaluate.scoring import Scorer
from dongwu_jax.generate import generate

logger = logging.getLogger(__name__)

_SHORTEST = 32  # positions of a batch; longer ones double, so that few programs are compiled
_DEFAULT_NEW_TOKENS = 256  # as the Hugging Face backend
_SETTINGS = {"until", "do_sample", "temperature", "top_p", "max_gen_toks", "num_beams"}
_ONLY_SAMPLING = {"top_k", "min_p", "typical_p"}  # without meaning for greedy decoding

# What the harness knows an answer by (None: it does not), context and continuation.
_Request = tuple[tuple[str, str] | None, list[int], list[int]]
_Answer = tuple[float, bool]  # log likelihood, and whether greedy decoding would give it


@dataclass(frozen=True)
class _Batch:
    """Requests of one forward pass.

    Attributes:
        members: their indices, at most `rows`.
        rows, width: the shape of the batch; the same for all batches of this width.
    """

    members: list[int]
    rows: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of its tokens."""
        return self.rows, self.width


@dataclass(frozen=True)
class _Decoding:
    """How to continue a text; requests that agree in it share batches."""

    max_new_tokens: int
    temperature: float
    top_p: float


class DongwuLM(TemplateLM):
    """Scores and continues texts with the model of a scorer.

    Tokens, truncation from the left and the split between context and continuation are those of
    the harness's Hugging Face backend without options.
    """

    def __init__(self, scorer: Scorer, max_length: int | None = None) -> None:
        """Make the model known to the harness.

        Args:
            max_length: tokens of the longest input; None: as many as the model has positions.

        Raises:
            UserError: `max_length` is more than the model has, or the tokenizer has no token that
                can stand for an empty context.
        """
        super().__init__()
        self._scorer = scorer
        self._tokenizer = scorer.model.tokenizer
        self._beginning = beginning_ids(self._tokenizer)
        positions = scorer.model.config.max_position_embeddings
        self.max_length = positions if max_length is None else max_length
        if not 1 <= self.max_length <= positions:
            raise UserError(
                f"--max-length {self.max_length}: must be from 1 to the model's {positions} "
                "positions"
            )
        bos_id, eos_id = self._tokenizer.bos_id, self._tokenizer.eos_id
        prefix = eos_id if bos_id is None else bos_id
        if prefix is None:
            raise UserError(
                "the tokenizer names neither a beginning nor an end token; the harness needs one "
                "to score a text without context: add bos_token to tokenizer_config.json"
            )
        self._prefix = prefix

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: the beginning token, else the end token."""
        return self._prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Token ids, with the tokenizer's beginning token unless that is not wanted.

        Args:
            add_special_tokens: None: yes, unless the text itself begins with it.
        """
        ids = self._tokenizer.encode(string)
        begins = add_special_tokens is None and ids[:1] == self._beginning
        return ids if begins or add_special_tokens is False else self._beginning + ids

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log likelihood of whole texts, in disjoint windows with one token of context.

        Returns:
            A sum for each text, in nats.
        """
        texts = [request.args[0] for request in requests]
        windows: list[_Request] = []
        owners = []
        for owner, text in enumerate(texts):
            found = get_rolling_token_windows(
                self.tok_encode(text), self._prefix, self.max_length, context_len=1
            )
            for context, continuation in map(make_disjoint_window, found):
                windows.append((None, context, continuation))
                owners.append(owner)
        totals = [0.0] * len(texts)
        answers = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (log_likelihood, _) in zip(owners, answers, strict=True):
            totals[owner] += log_likelihood
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **_: object
    ) -> list[_Answer]:
        """Log likelihood of each continuation, and whether greedy decoding would give it.

        A context that is too long loses its first tokens.

        Raises:
            UserError: a continuation has no tokens, or more than `max_length`.
        """
        wholes = self._inputs_and_labels(requests)
        choices = [index for index, request in enumerate(requests) if len(request[2]) == 1]
        longer = [index for index, request in enumerate(requests) if len(request[2]) > 1]
        sizes = [len(request[2]) for request in requests]
        answers: dict[int, _Answer] = {}
        with _bar(len(requests), "loglikelihood", disable_tqdm) as bar:
            for index, answer in itertools.chain(
                self._of_texts(longer, wholes, sizes), self._of_choices(choices, wholes)
            ):
                answers[index] = answer
                bar.update()
        return [answers[index] for index in range(len(requests))]

    def _of_texts(
        self, members: list[int], wholes: list[list[int]], sizes: list[int]
    ) -> Iterator[tuple[int, _Answer]]:
        """Answers to requests of which each has a row of its own.

        Args:
            sizes: tokens of each continuation.
        """
        for batch in self._batches([len(wholes[index]) - 1 for index in members]):
            tokens, labels = np.zeros((2, *batch.shape), np.int32)
            for row, member in enumerate(batch.members):
                whole = wholes[members[member]]
                tokens[row, : len(whole) - 1], labels[row, : len(whole) - 1] = whole[:-1], whole[1:]
            scores = self._scorer(tokens, labels)
            for row, member in enumerate(batch.members):
                index = members[member]
                end = len(wholes[index]) - 1
                counted = np.s_[row, end - sizes[index] : end]
                log_likelihood = -float(scores.losses[counted].sum(dtype=np.float64))
                yield index, (log_likelihood, bool(scores.likeliest[counted].all()))

    def _of_choices(
        self, members: list[int], wholes: list[list[int]]
    ) -> Iterator[tuple[int, _Answer]]:
        """Answers to requests for one token; those that share an input share a row."""
        sharing: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index in members:
            sharing[tuple(wholes[index][:-1])].append(index)
        inputs = list(sharing)
        for batch in self._batches(list(map(len, inputs))):
            tokens, last = (np.zeros(shape, np.int32) for shape in (batch.shape, batch.rows))
            for row, member in enumerate(batch.members):
                tokens[row, : len(inputs[member])] = inputs[member]
                last[row] = len(inputs[member]) - 1
            likelihoods = self._scorer.next_tokens(tokens, last)
            for row, member in enumerate(batch.members):
                likeliest = int(likelihoods[row].argmax())
                for index in sharing[inputs[member]]:
                    token = wholes[index][-1]
                    yield index, (float(likelihoods[row, token]), token == likeliest)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each text until one of its stop strings, which is left out.

        Sampled texts depend on the order of the requests, and on nothing else.

        Raises:
            UserError: a task asks for a kind of decoding that is not here, or for more new tokens
                than the model has room for.
        """
        groups: dict[_Decoding, list[int]] = defaultdict(list)
        prompts, stops = [], []
        for index, request in enumerate(requests):
            context, options = request.args
            decoding, until = _decoding(options)
            prompts.append(self._prompt(context, decoding.max_new_tokens))
            stops.append(until)
            groups[decoding].append(index)
        texts: dict[int, str] = {}
        with _bar(len(requests), "generate_until", disable_tqdm) as bar:
            for decoding, members in groups.items():
                for index, new in self._continuations(decoding, members, prompts):
                    text = self._tokenizer.decode(new)
                    texts[index] = postprocess_generated_text(text, stops[index], None)
                    bar.update()
        return [texts[index] for index in range(len(requests))]

    def _continuations(
        self, decoding: _Decoding, members: list[int], prompts: list[list[int]]
    ) -> Iterator[tuple[int, list[int]]]:
        """(index, new tokens) of the requests `members`, the longest prompts first."""
        model = self._scorer.model
        ordered = sorted(members, key=lambda index: -len(prompts[index]))
        longest = len(prompts[ordered[0]]) + decoding.max_new_tokens
        rows = self._scorer.rows_for(len(ordered), longest)
        for first in range(0, len(ordered), rows):
            batch = ordered[first : first + rows]
            padded = batch + batch[-1:] * (rows - len(batch))
            with jax.default_matmul_precision(model.matmul_precision):
                new = generate(
                    model.config,
                    model.parameters,
                    [prompts[index] for index in padded],
                    decoding.max_new_tokens,
                    decoding.temperature,
                    decoding.top_p,
                    seed=first,
                    eos_id=self._tokenizer.eos_id,
                    rows=model.rows,
                )
            yield from zip(batch, new, strict=False)  # without the rows that pad the batch

    def _prompt(self, context: str, max_new_tokens: int) -> list[int]:
        """The last tokens of a context, as many as leave room for the new ones."""
        room = self.max_length - max_new_tokens
        if room < 1:
            raise UserError(
                f"max_gen_toks={max_new_tokens}: must be below max_length={self.max_length}, "
                "which has to hold the prompt too; choose a longer --max-length"
            )
        return (self.tok_encode(context) or [self._prefix])[-room:]

    def _inputs_and_labels(self, requests: Sequence[_Request]) -> list[list[int]]:
        """Context and continuation of each request, the last `max_length + 1` tokens of them."""
        wholes = []
        for _key, context, continuation in requests:
            if not 1 <= len(continuation) <= self.max_length:
                raise UserError(
                    f"a task asks for the likelihood of a continuation of {len(continuation)} "
                    f"tokens; it must have from 1 to max_length={self.max_length}"
                )
            wholes.append(context + continuation)
        too_long = sum(len(whole) > self.max_length + 1 for whole in wholes)
        if too_long:
            logger.warning(
                "%d of %d inputs are longer than max_length=%d: their first tokens are left out",
                *(too_long, len(wholes), self.max_length),
            )
        return [whole[-(self.max_length + 1) :] for whole in wholes]

    def _batches(self, lengths: list[int]) -> Iterable[_Batch]:
        """Inputs of similar lengths together, the longest first."""
        by_width: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            by_width[max(_SHORTEST, 1 << (length - 1).bit_length())].append(index)
        for width, members in sorted(by_width.items(), reverse=True):
            rows = self._scorer.rows_for(len(members), width)
            for first in range(0, len(members), rows):
                yield _Batch(members[first : first + rows], rows, width)


def _decoding(options: dict[str, Any]) -> tuple[_Decoding, list[str]]:
    """What a task's `generation_kwargs` ask for, and its stop strings."""
    settings: dict[str, Any] = dict(normalize_gen_kwargs(options, _DEFAULT_NEW_TOKENS))
    known = _SETTINGS if settings["do_sample"] else _SETTINGS | _ONLY_SAMPLING
    for name, value in settings.items():
        if name not in known or (name == "num_beams" and value != 1):
            raise UserError(
                f"generation_kwargs: {name}={value}: cannot be had here; a task may set "
                "until, max_gen_toks, do_sample, temperature and top_p"
            )
    temperature = float(settings.get("temperature", 0.0))
    if settings["do_sample"] and temperature <= 0:
        raise UserError(
            f"generation_kwargs: temperature={temperature}: must be above 0 for do_sample=true; "
            "say do_sample: false for greedy decoding"
        )
    until = [stop for stop in settings["until"] if stop]
    top_p = float(settings.get("top_p", 1.0)) if settings["do_sample"] else 1.0
    return _Decoding(settings["max_gen_toks"], temperature, top_p), until


def _bar(total: int, kind: str, hidden: bool) -> "tqdm[Any]":
    return tqdm(total=total, desc=f"Running {kind} requests", disable=hidden)
