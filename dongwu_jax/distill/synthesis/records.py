"""The JSON lines that a job writes."""

from dataclasses import asdict, dataclass
from typing import Any

from dongwu_jax.distill.synthesis.prompts import Rejection, Request
from dongwu_jax.distill.synthesis.recipe import Recipe
from dongwu_jax.distill.synthesis.templates import training_text


@dataclass(frozen=True)
class Completion:
    """What the generator made of a request.

    Attributes:
        text: without the prompt.
        tokens: number of tokens that were generated.
        finish_reason: `stop` (the model ended the text) or `length`.
    """

    text: str
    tokens: int
    finish_reason: str


def sample_record(
    request: Request, completion: Completion, recipe: Recipe, model: str
) -> dict[str, Any]:
    """A finished sample; `text` is what tools/preprocess_data.py reads."""
    return {
        "id": request.id,
        "text": training_text(recipe.template, request.prefix, completion.text),
        "prefix": request.prefix,
        "completion": completion.text,
        "source": request.source,
        "round": request.round,
        "prefix_tokens": request.prefix_tokens,
        "completion_tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "template": recipe.template,
        "model": model,
        "sampling": asdict(recipe.sampling),
        "seed": request.seed,
    }


def rejected_record(rejection: Rejection) -> dict[str, Any]:
    """A document or sample that was set aside, with what is needed to try it again."""
    record: dict[str, Any] = {
        "source": rejection.source,
        "kind": rejection.kind,
        "reason": rejection.reason,
    }
    if rejection.request is not None:
        record |= {
            "id": rejection.request.id,
            "round": rejection.request.round,
            "prefix": rejection.request.prefix,
            "seed": rejection.request.seed,
        }
    return record
