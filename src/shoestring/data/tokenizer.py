"""Text to tokens and back, by a tokenizer whose every token stands for a known number of bytes."""

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers
import torch

from shoestring import atomic
from shoestring.data.tokenizer_bytes import spelling
from shoestring.data.tokenizer_package import made_by_package, rules_of_json
from shoestring.data.tokenizer_sentencepiece import read_sentencepiece
from shoestring.errors import UsageError, first_line
from shoestring.json_files import NotJson, parse_json

END = "<|endoftext|>"
"""The end-of-document token of the tokenizers made here."""

KNOWN_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>")
"""End tokens looked for in a tokenizer.json that comes without a tokenizer_config.json to name its own."""


MOST_TOKENS = 1 << 24
"""More ids than any vocabulary has: tables of this program have a row for each."""


class Tokenizer(Protocol):
    """What turns text into token ids and back, and knows the bytes of each token."""

    @property
    def end(self) -> int:
        """The id of the end-of-document token."""
        ...

    @property
    def begin(self) -> int | None:
        """The id of the token that its makers put before each text; None where there is none."""
        ...

    @property
    def vocabulary(self) -> int:
        """The number of ids."""
        ...

    @property
    def prefix(self) -> int:
        """Bytes that `encode` puts before each text, and that are among those of its tokens: a space, or nothing."""
        ...

    @property
    def caveats(self) -> tuple[str, ...]:
        """A line each for text whose tokens do not stand for just its bytes."""
        ...

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for; none for special tokens and for ids that are not used."""
        ...

    @property
    def byte_lengths(self) -> torch.Tensor:
        """[vocabulary] int64: the bytes each id counts for. Those of a text's ids and the end token add up to its bytes."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides how text becomes ids."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with no special token, whatever the text says."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        ...

    def encode_special(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are written out, as a chat template writes them."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: special tokens are empty, bytes that are not UTF-8 become U+FFFD."""
        ...

    def token(self, place: int) -> str:
        """How an id is written."""
        ...

    def stream(self) -> "TextStream":
        """A decoder that is given one token at a time."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` of its class reads."""
        ...


TEMPLATE = "chat_template.jinja"
"""The file beside a tokenizer that transformers reads, and writes."""


class TextTokenizer:
    """A tokenizer of the `tokenizers` package, byte-level or SentencePiece's, with one end-of-document token.

    `encode` never makes the end token, whatever the text says: who joins documents puts it there. `decode` is the
    exact inverse of `encode` but for what `caveats` says: a tokenizer loaded from elsewhere may change the text first.

    begin: the token that its makers put before each text. Who wants it puts it there.
    chat_template: in Jinja, kept with it; None where there is none.
    Raises: UsageError where the tokens do not tell the text: `byte_lengths` could not be counted.
    """

    chat_template: str | None = None

    def __init__(self, rules: tokenizers.Tokenizer, end: int, begin: int | None = None) -> None:
        # a tokenizer.json may carry the truncation and padding it was once used with: they would lose text
        rules.no_truncation()
        rules.no_padding()
        rules.encode_special_tokens = True
        self.rules, self.end, self.begin = rules, end, begin
        self._spelling = spelling(rules, end)
        self.vocabulary: int = len(self._spelling.table)

    @property
    def prefix(self) -> int:
        return self._spelling.extra

    @property
    def caveats(self) -> tuple[str, ...]:
        return self._spelling.caveats

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        return self._spelling.table

    def encode(self, text: str) -> list[int]:
        """The ids of a text, the end token not among them."""
        return self._spelling.rules.encode(self._prefixed(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        encoded = self._spelling.rules.encode_batch_fast([*map(self._prefixed, texts)], add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def _prefixed(self, text: str) -> str:
        return self._spelling.prefix + text if text else text

    def encode_special(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are written out, as a chat template writes them."""
        return self._special_rules.encode(text, add_special_tokens=False).ids

    @cached_property
    def _special_rules(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.rules.to_str())  # a copy: others may encode at the same time

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: special tokens are empty, bytes that are not UTF-8 become U+FFFD."""
        text = b"".join(self.token_bytes[token] for token in ids).decode(errors="replace")
        return text.removeprefix(" ") if self.prefix else text

    def token(self, place: int) -> str:
        """How an id is written."""
        return str(self.rules.id_to_token(place))

    def stream(self) -> "TextStream":
        """A decoder that is given one token at a time."""
        return TextStream(self)

    @cached_property
    def byte_lengths(self) -> torch.Tensor:
        """[vocabulary] int64: the bytes each id counts for, 0 for special tokens. Bits per byte are counted with it.

        The end token takes back the space that `encode` puts before each text, where it does: it counts for -1.
        """
        lengths = torch.tensor([len(token) for token in self.token_bytes], dtype=torch.int64)
        lengths[self.end] = -self.prefix
        return lengths

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides how text becomes ids."""
        return hashlib.sha256(f"{self.end}\n{self.rules.to_str()}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, and chat_template.jinja where there is one, which `transformers` reads too
        (AutoTokenizer)."""
        if self.chat_template is not None:
            atomic.write_text(folder / TEMPLATE, self.chat_template)
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.token(self.end),
            "clean_up_tokenization_spaces": False,
        }
        if self.begin is not None:
            settings |= {"bos_token": self.token(self.begin), "add_bos_token": True}
        atomic.write_text(folder / "tokenizer.json", self.rules.to_str(pretty=True) + "\n")
        atomic.write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, end: int | None = None) -> "TextTokenizer":
        """The tokenizer of a tokenizer.json or tokenizer.model, or of a folder with one.

        Its end token is the one that the tokenizer_config.json beside it names.
        end: the end token where none is named.
        Raises: UsageError where there is none, where the bytes of its tokens, and so bits per byte, could not be counted, or
        where no end token can be told.
        """
        file = path
        if path.is_dir():
            model = path / "tokenizer.model"
            file = model if model.exists() and not (path / "tokenizer.json").exists() else path / "tokenizer.json"
        if file.suffix == ".model":
            rules, own_end = read_sentencepiece(file)
            end = own_end if end is None else end
        else:
            described = _read_json(file)
            if not isinstance(described.get("model"), dict):
                raise UsageError(f"{file} is not a tokenizer of the `tokenizers` package")
            rules = _rules(described, file)
        settings = _settings(file)
        found = _end(rules, file, settings, end)
        try:
            made = cls(rules, found, _begin(rules, settings, found))
        except UsageError as error:
            raise UsageError(f"{file} cannot be used: {error}") from None
        try:
            made.chat_template = file.with_name(TEMPLATE).read_text(encoding="utf-8")
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file.with_name(TEMPLATE)} cannot be read: {first_line(error)}") from None
        return made


class TextStream:
    """Tokens in, text out as soon as it is whole: a character whose bytes are spread over tokens waits for the last."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes, often its own, sometimes none; a model may have more tokens than are in use."""
        known = self._tokenizer.token_bytes
        return self._decoder.decode(known[token] if token < len(known) else b"")

    def finish(self) -> str:
        """What is left when no more tokens come: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except NotJson as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object")
    return content


def _rules(described: dict[str, Any], file: Path) -> tokenizers.Tokenizer:
    """The tokenizer that a tokenizer.json describes. Raises: UsageError where the package makes none of it."""
    problem = f"{file} is not a tokenizer that can be used"
    rules = rules_of_json(described, problem)
    ids = made_by_package(lambda: rules.get_vocab(with_added_tokens=True).values(), problem)
    if not ids or max(ids) >= MOST_TOKENS:
        what = (
            f"has an id of {max(ids)}, and {MOST_TOKENS - 1} is the highest that is taken" if ids else "has no tokens"
        )
        raise UsageError(f"{file} {what}")
    return rules


def _settings(file: Path) -> dict[str, Any]:
    """What the tokenizer_config.json beside a tokenizer says."""
    beside = file.with_name("tokenizer_config.json")
    return _read_json(beside) if beside.exists() else {}


def _named(settings: dict[str, Any], key: str, file: Path) -> str | None:
    """The token that a tokenizer_config.json names under a key."""
    named = settings.get(key)
    if isinstance(named, dict):
        named = named.get("content")
    if named is not None and not (isinstance(named, str) and _is_text(named)):
        what = "end token" if key == "eos_token" else key
        raise UsageError(f"{file.with_name('tokenizer_config.json')} names an {what} that is no text")
    return named


def _end(rules: tokenizers.Tokenizer, file: Path, settings: dict[str, Any], given: int | None) -> int:
    named = _named(settings, "eos_token", file)
    if not named and given is not None and rules.id_to_token(given) is not None:
        return given
    for token in [named] if named else KNOWN_ENDS:
        end = rules.token_to_id(token)
        if end is not None:
            return int(end)
    wanted = f"'{named}', which tokenizer_config.json names," if named else f"any of {', '.join(KNOWN_ENDS)}"
    raise UsageError(f"{file} has no end-of-document token: {wanted} is not in it")


def _begin(rules: tokenizers.Tokenizer, settings: dict[str, Any], end: int) -> int | None:
    """The token put before each text: by the tokenizer's own post-processor, or by what is said beside it."""
    added = rules.encode("", add_special_tokens=True).ids[:1]
    if added and added != [end]:
        return int(added[0])
    named = settings.get("bos_token")
    if isinstance(named, dict):
        named = named.get("content")
    if settings.get("add_bos_token") is True and isinstance(named, str) and _is_text(named):
        found = rules.token_to_id(named)
        return None if found is None else int(found)
    return None


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON can hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
