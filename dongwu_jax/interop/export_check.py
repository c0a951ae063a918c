"""Whether transformers reads an export as we do: same logits, same tokens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dongwu_jax.errors import UserError
from dongwu_jax.interop.loaded_model import LoadedModel, load_model
from dongwu_jax.interop.logits import our_logits

_TEXTS = (
    "The yield curve inverted in March; 10-year notes closed at 3.25%.",
    "证券公司应当建立健全内部控制制度，防范利益冲突。",
    "  indented\n\tdef f(x):\n        return x ** 2\n",
)


@dataclass(frozen=True)
class ExportCheck:
    """What was compared."""

    largest_difference: float  # of a float32 logit
    largest_logit: float
    tokens: int
    texts_tokenised_alike: int
    texts: int


def check_export(folder: Path) -> ExportCheck:
    """Load an export with transformers and with our own reader, and compare them in float32.

    Raises:
        UserError: transformers or torch is missing, or the export cannot be read.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'dongwu_jax[hf]'") from None
    ours = load_model(folder, dtype="float32")
    tokens = _tokens(ours)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(tokens)).logits.numpy()
    logits = our_logits(ours.config, ours.parameters, tokens)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    alike = [
        tokenizer.encode(text, add_special_tokens=False) == list(ours.tokenizer.encode(text))
        for text in _TEXTS
    ]
    return ExportCheck(
        largest_difference=float(np.abs(logits - theirs).max()),
        largest_logit=float(np.abs(theirs).max()),
        tokens=tokens.size,
        texts_tokenised_alike=sum(alike),
        texts=len(_TEXTS),
    )


def _tokens(model: LoadedModel) -> np.ndarray:
    """int64 [1, length]: the texts, as far as the model's length allows."""
    ids = [token for text in _TEXTS for token in model.tokenizer.encode(text)]
    return np.array([ids[: model.config.max_position_embeddings]], np.int64)
