"""Text to token ids and back: SentencePiece models and Hugging Face `tokenizer.json` files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from dongwu_jax.errors import UserError
from dongwu_jax.input_files import read_json_object, read_small_file

_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",  # the tokens that end a text
)
_LARGEST_VOCABULARY = 1 << 24


class Tokenizer(Protocol):
    """What the toolkit needs of a tokenizer. Ids that a tokenizer lacks are None."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, from 0."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token before a text."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token behind a text."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The token that fills rows up."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without beginning or end tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece `.model` file."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(read_small_file(self.path))
        except (RuntimeError, UnicodeDecodeError):  # the second: of the library's own message
            raise UserError(f"{path}: is not a SentencePiece model") from None
        self.vocab_size: int = self.processor.get_piece_size()
        self.bos_id = _id_or_none(self.processor.bos_id())
        self.eos_id = _id_or_none(self.processor.eos_id())
        self.pad_id = _id_or_none(self.processor.pad_id())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without beginning or end tokens."""
        return self.processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; control tokens are left out."""
        return self.processor.decode([int(i) for i in ids])


class HuggingFaceTokenizer:
    """A `tokenizer.json`, with the special tokens that `tokenizer_config.json` beside it names.

    Attributes:
        prepends_bos: whether the tokenizer itself, as Hugging Face calls it, begins every text
            with BOS. `encode` never does.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        content = read_small_file(self.path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except BaseException as error:
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            raise UserError(f"{path}: is not a Hugging Face tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size: int = self._size()
        special = _special_tokens(self.path.parent)
        self.bos_id = self._id_of(special, "bos_token")
        self.eos_id = self._id_of(special, "eos_token")
        self.pad_id = self._id_of(special, "pad_token")

    @property
    def prepends_bos(self) -> bool:
        """Whether the post-processor puts BOS, and nothing else, around every text.

        Raises:
            UserError: it adds other tokens.
        """
        added = self._encoded("", with_special=True).ids
        if added not in ([], [self.bos_id]):
            raise UserError(
                f"{self.path}: adds the tokens {added} to every text, not only BOS "
                f"({self.bos_id}); change its post_processor "
                "(or, in preprocess_data, say with --bos where BOS is put)"
            )
        return bool(added)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the special tokens of the post-processor."""
        return self._encoded(text).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, and of each token the characters where it begins and ends."""
        encoded = self._encoded(text)
        return encoded.ids, encoded.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def _encoded(self, text: str, with_special: bool = False) -> tokenizers.Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=with_special)
        except BaseException as error:
            # Else the library raises plain Exception for a file that contradicts itself.
            if type(error) is not Exception and not _is_panic(error):
                raise
            raise UserError(f"{self.path}: is damaged: it fails on a text: {error}") from None

    def _size(self) -> int:
        """One more than the largest id: some vocabularies have holes."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        size = 1 + max(ids, default=-1)
        if size > _LARGEST_VOCABULARY:
            raise UserError(
                f"{self.path}: has a token of id {size - 1}, at most {_LARGEST_VOCABULARY} tokens "
                "are accepted; the file is damaged"
            )
        return size

    def _id_of(self, special: dict[str, Any], name: str) -> int | None:
        token = special.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            return None
        try:
            token_id = self._tokenizer.token_to_id(text)
        except (TypeError, UnicodeEncodeError):  # the second: half of a surrogate pair
            token_id = None
        if token_id is None:
            raise UserError(
                f"{self.path.parent / 'tokenizer_config.json'}: {name}={str(text)[:80]!r} is not "
                f"in the vocabulary of {self.path.name}"
            )
        return token_id


def load_tokenizer(path: Path | str) -> SentencePieceTokenizer | HuggingFaceTokenizer:
    """The tokenizer of a `.model` file, a `tokenizer.json`, or a folder with either.

    A folder's `tokenizer.json` is preferred, as Hugging Face does.

    Raises:
        UserError: there is no tokenizer, or it is damaged.
    """
    file = _tokenizer_file(Path(path))
    return HuggingFaceTokenizer(file) if file.suffix == ".json" else SentencePieceTokenizer(file)


def load_fitting_tokenizer(
    path: Path | str, vocab_size: int
) -> SentencePieceTokenizer | HuggingFaceTokenizer:
    """The tokenizer at `path`, for a model of this vocabulary, which may be larger.

    Raises:
        UserError: there is no tokenizer, or it is damaged, or has tokens that the model lacks.
    """
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is "
            f"{vocab_size}; this tokenizer does not belong to the model"
        )
    return tokenizer


def check_same_tokens(
    ours: SentencePieceTokenizer | HuggingFaceTokenizer,
    theirs: SentencePieceTokenizer | HuggingFaceTokenizer,
) -> None:
    """Whether each id means the same text to both, whatever kinds of file they come from.

    Raises:
        UserError: naming the first id that does not.
    """
    if ours.vocab_size != theirs.vocab_size:
        raise UserError(
            f"{ours.path} has {ours.vocab_size} tokens, {theirs.path} {theirs.vocab_size}; "
            "they must be the same tokenizer"
        )
    # Between two others: at the start of a text a decoder may leave out a space.
    around = ours.encode("a")[-1:]
    for token in range(ours.vocab_size):
        first, second = (t.decode([*around, token, *around]) for t in (ours, theirs))
        if first != second:
            raise UserError(
                f"{ours.path} and {theirs.path} are different tokenizers: id {token} is "
                f"{first!r} in one and {second!r} in the other, between two of id {around}"
            )


def tokenizer_files(path: Path | str) -> list[Path]:
    """The files to copy so that `load_tokenizer` of their new folder gives the same tokenizer."""
    file = _tokenizer_file(Path(path))
    if file.suffix != ".json" and not Path(path).is_dir():
        return [file]
    found = [file.parent / name for name in _COMPANIONS]
    models = sorted(file.parent.glob("*.model")) if Path(path).is_dir() else []
    return [f for f in found if f.is_file()] + models


def sentencepiece_file(path: Path | str) -> Path:
    """The `.model` file that `path` is, or the only one in the folder `path`.

    Raises:
        UserError: there is none, or there are several.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    models = sorted(path.glob("*.model"))
    if len(models) != 1:
        names = ", ".join(model.name for model in models) or "none"
        raise UserError(f"{path}: needs exactly one SentencePiece .model file, found {names}")
    return models[0]


def hugging_face_file(path: Path | str) -> Path:
    """The `tokenizer.json` that `path` is, or that lies in the folder `path`."""
    path = Path(path)
    return path / "tokenizer.json" if path.is_dir() else path


def _tokenizer_file(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such tokenizer file or folder")
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return path / "tokenizer.json"
        return sentencepiece_file(path)
    if path.suffix != ".model" and path.name != "tokenizer.json":
        raise UserError(
            f"{path}: a tokenizer is a SentencePiece .model file, a Hugging Face tokenizer.json, "
            "or a folder with one of them"
        )
    return path


def _special_tokens(folder: Path) -> dict[str, Any]:
    """`bos_token` and its like from the configuration files in a folder."""
    special: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        content = read_json_object(file)
        special |= {key: value for key, value in content.items() if value is not None}
    return special


def _is_panic(error: BaseException) -> bool:
    """Whether the library failed in itself: its class for that is no Exception, nor exported."""
    return type(error).__name__ == "PanicException"


def _id_or_none(token_id: int) -> int | None:
    return None if token_id < 0 else token_id
