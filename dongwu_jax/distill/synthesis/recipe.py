"""What decides which samples there are. Two runs of one recipe make the same set of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How the generator draws; the names are vLLM's, but for `max_new_tokens`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float


@dataclass(frozen=True)
class Recipe:
    """From documents to prompts.

    Attributes:
        text_key: key of the text in a line of the input.
        template: `continue`, or a name in `templates.REWRITINGS`.
        language: of a rewriting's message: zh, en, or auto.
        prefix_tokens: least and greatest length of a prefix, in tokens of the generator.
        min_document_tokens: shorter documents are set aside.
        rounds: samples of one document.
        seed: other seeds give other prefixes and other samples.
        limit: number of documents to use, from the first on; None: all.
        documents_per_part: documents whose samples share a file.
    """

    text_key: str
    template: str
    language: str
    prefix_tokens: tuple[int, int]
    min_document_tokens: int
    rounds: int
    seed: int
    limit: int | None
    documents_per_part: int
    sampling: Sampling
