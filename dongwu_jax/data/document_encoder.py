"""From lines of JSON to the tokens and sequence lengths of documents, as Megatron writes them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from dongwu_jax.data.indexed_dataset import token_dtype
from dongwu_jax.data.jsonl import LineBlock, block_lines, parse_texts
from dongwu_jax.data.segment_encoder import SegmentEncoder
from dongwu_jax.data.sentences import split_sentences
from dongwu_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    hugging_face_file,
    sentencepiece_file,
    tokenizer_files,
)
from dongwu_jax.errors import UserError

TokenizerType = Literal["Llama2Tokenizer", "GPTSentencePieceTokenizer", "HuggingFaceTokenizer"]
BosPolicy = Literal["none", "document", "sentence"]


@dataclass(frozen=True)
class EncodingSettings:
    """What decides the tokens of a document.

    Attributes:
        tokenizer_type: Megatron's name of the kind of tokenizer.
        tokenizer_model: its file or folder.
        json_keys: keys of each JSON object to encode, each into a dataset of its own.
        append_eod: end every document that has tokens with the end token.
        bos: where the beginning token is put; None: as this tokenizer type does in Megatron.
        split_sentences: one sequence per sentence, not per document.
        keep_newlines: line breaks stay at the end of the sentence before them.
    """

    tokenizer_type: TokenizerType
    tokenizer_model: Path
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    bos: BosPolicy | None = None
    split_sentences: bool = False
    keep_newlines: bool = False

    @property
    def dataset_names(self) -> list[str]:
        """What follows the output prefix in the names of the datasets.

        Raises:
            UserError: a key cannot be part of a file's name.
        """
        level = "sentence" if self.split_sentences else "document"
        for key in self.json_keys:
            if self.json_keys.count(key) > 1 or not key or "/" in key:
                raise UserError(f"--json-keys: {key!r} is empty, given twice, or holds a slash")
        return [f"{key}_{level}" for key in self.json_keys]

    @property
    def tokenizer_sources(self) -> list[Path]:
        """The files that decide how the tokenizer works."""
        if self.tokenizer_type == "HuggingFaceTokenizer":
            return tokenizer_files(hugging_face_file(self.tokenizer_model))
        return [sentencepiece_file(self.tokenizer_model)]

    def encoder(self) -> "DocumentEncoder":
        """What encodes so.

        Raises:
            UserError: the tokenizer cannot be read, or lacks a token that is asked for.
        """
        return DocumentEncoder(self)


@dataclass(frozen=True)
class EncodedDocuments:
    """Consecutive documents of one dataset.

    Attributes:
        tokens: of all documents [tokens].
        lengths: of all sequences, int64 [sequences].
        sequence_counts: sequences of each document, int64 [documents].
    """

    tokens: np.ndarray
    lengths: np.ndarray
    sequence_counts: np.ndarray


@dataclass(frozen=True)
class EncodedBlock:
    """What became of a block of lines: documents of each key, and lines that were refused."""

    by_key: list[EncodedDocuments]
    bad_lines: list[str] = field(default_factory=list)


class BlockEncoder(Protocol):
    """Turns blocks of lines into documents of one or several datasets.

    Attributes:
        dtypes: of each dataset.
    """

    dtypes: list[np.dtype]

    def encode_block(self, block: LineBlock, skip_bad_lines: bool) -> EncodedBlock:
        """Encode all lines that are not blank.

        Raises:
            UserError: naming file and line of a bad one, unless those are skipped.
        """
        ...


class PreprocessSettings(Protocol):
    """All that decides the output, a dataclass; see `EncodingSettings`."""

    @property
    def dataset_names(self) -> list[str]:
        """What follows the output's prefix in the name of each dataset."""
        ...

    @property
    def tokenizer_sources(self) -> list[Path]:
        """The tokenizer's files: other ones give another output."""
        ...

    def encoder(self) -> BlockEncoder:
        """What encodes; made anew in every process."""
        ...


class DocumentEncoder:
    """Encodes blocks of JSON lines.

    Attributes:
        dtypes: of what it gives for each key.

    Raises:
        UserError: the tokenizer cannot be read, or lacks a token that the settings ask for.
    """

    def __init__(self, settings: EncodingSettings) -> None:
        self._settings = settings
        tokenizer = _load(settings)
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self.dtypes = [self._dtype] * len(settings.json_keys)
        self._bos_policy = settings.bos or _default_bos(settings, tokenizer)
        self._bos = self._eod = -1
        if self._bos_policy != "none":
            self._bos = self._required(tokenizer.bos_id, "beginning", "--bos none")
        if settings.append_eod:
            self._eod = self._required(tokenizer.eos_id, "end", "no --append-eod")

    @functools.cached_property
    def _segments(self) -> SegmentEncoder | None:
        """Made when first needed: it takes longer than reading the tokenizer."""
        tokenizer = self._tokenizer
        if isinstance(tokenizer, SentencePieceTokenizer) and SegmentEncoder.supports(tokenizer):
            return SegmentEncoder(tokenizer)
        return None

    def __reduce__(self) -> tuple[type["DocumentEncoder"], tuple[EncodingSettings]]:
        """Another process makes its own: tables are faster to make than to send."""
        return DocumentEncoder, (self._settings,)

    def _required(self, token_id: int | None, name: str, way_out: str) -> int:
        if token_id is None:
            raise UserError(
                f"{self._settings.tokenizer_model}: the tokenizer has no {name} token; "
                f"add it to its configuration, or use {way_out}"
            )
        return token_id

    def encode_block(self, block: LineBlock, skip_bad_lines: bool) -> EncodedBlock:
        """Encode all lines that are not blank.

        Raises:
            UserError: naming file and line of a bad one, unless those are skipped.
        """
        keys = self._settings.json_keys
        documents: list[list[list[str]]] = []
        bad_lines = []
        for number, line in block_lines(block):
            try:
                documents.append(parse_texts(line, keys, block.path, number))
            except UserError as error:
                if not skip_bad_lines:
                    raise
                bad_lines.append(str(error))
        by_key = [
            self.encode_documents([document[i] for document in documents]) for i in range(len(keys))
        ]
        return EncodedBlock(by_key, bad_lines)

    def encode_documents(self, documents: Sequence[Sequence[str]]) -> EncodedDocuments:
        """Encode documents that are lists of texts; each text with tokens becomes a sequence."""
        if self._settings.split_sentences:
            keep = self._settings.keep_newlines
            documents = [
                [s for text in texts for s in split_sentences(text, keep)] for texts in documents
            ]
        if self._bos_policy == "document":
            documents = [texts or [""] for texts in documents]  # to hold the beginning token
        sentences = [text for texts in documents for text in texts]
        tokens, lengths = self._encode_texts(sentences)
        counts = np.array([len(texts) for texts in documents], np.int64)
        document_of = np.repeat(np.arange(len(documents)), counts)
        return self._add_special(tokens, lengths, document_of, len(documents))

    def _encode_texts(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after the other, and the number of each."""
        if self._segments is not None:
            return self._segments.encode_batch(texts)
        encoded = [np.asarray(self._tokenizer.encode(text), np.int32) for text in texts]
        counts = np.array([len(ids) for ids in encoded], np.int64)
        return np.concatenate([np.empty(0, np.int32), *encoded]), counts

    def _add_special(
        self, tokens: np.ndarray, lengths: np.ndarray, document_of: np.ndarray, documents: int
    ) -> EncodedDocuments:
        """Put beginning and end tokens in, and drop sentences without tokens.

        Args:
            tokens: of all sentences [tokens].
            lengths: of the sentences [sentences].
            document_of: number of the document of each sentence, rising [sentences].
            documents: number of documents.
        """
        starts = np.cumsum(lengths) - lengths
        with_bos = np.zeros(len(lengths), bool)
        if self._bos_policy == "sentence":
            with_bos[:] = True
        kept = (lengths > 0) | with_bos
        if self._bos_policy == "document":
            empty = np.bincount(document_of[kept], minlength=documents) == 0
            is_first = np.diff(document_of, prepend=-1) > 0
            kept |= is_first & empty[document_of]
            first_kept = np.flatnonzero(kept)
            with_bos[first_kept[np.diff(document_of[kept], prepend=-1) > 0]] = True
        with_bos, starts = with_bos[kept], starts[kept]
        lengths, document_of = lengths[kept], document_of[kept]
        with_eod = np.zeros(len(lengths), bool)
        if self._settings.append_eod:
            with_eod[:] = np.diff(document_of, append=documents) > 0
        # interleaved, so that equal places keep the order: BOS, then EOD of the same sentence
        places = np.stack([starts, starts + lengths], axis=1)
        wanted = np.stack([with_bos, with_eod], axis=1)
        values = np.broadcast_to(np.array([self._bos, self._eod]), wanted.shape)
        if wanted.any():
            tokens = np.insert(tokens, places[wanted], values[wanted])
        return EncodedDocuments(
            tokens.astype(self._dtype),
            lengths + with_bos + with_eod,
            np.bincount(document_of, minlength=documents),
        )


def _load(settings: EncodingSettings) -> SentencePieceTokenizer | HuggingFaceTokenizer:
    if settings.tokenizer_type == "HuggingFaceTokenizer":
        return HuggingFaceTokenizer(hugging_face_file(settings.tokenizer_model))
    return SentencePieceTokenizer(sentencepiece_file(settings.tokenizer_model))


def _default_bos(
    settings: EncodingSettings, tokenizer: SentencePieceTokenizer | HuggingFaceTokenizer
) -> BosPolicy:
    """Megatron puts BOS into every text that it tokenises, or into none."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return "sentence" if tokenizer.prepends_bos else "none"
    return "sentence" if settings.tokenizer_type == "Llama2Tokenizer" else "none"
