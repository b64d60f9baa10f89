"""Text to tokens and back: a byte-level tokenizer, whose every token stands for a known number of bytes."""

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch

from shoestring import atomic
from shoestring.errors import UsageError, first_line
from shoestring.json_files import NotJson, parse_json

END = "<|endoftext|>"
"""The end-of-document token of the tokenizers made here."""

KNOWN_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>")
"""End tokens looked for in a tokenizer.json that comes without a tokenizer_config.json to name its own."""


MOST_TOKENS = 1 << 24
"""More ids than any vocabulary has: tables of this program have a row for each."""


def _byte_characters() -> dict[str, int]:
    """The printable characters that stand for bytes in a byte-level vocabulary (GPT-2's table), and their bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_characters()


class TextTokenizer:
    """A byte-level tokenizer of the `tokenizers` package, with one end-of-document token.

    `encode` never makes the end token, whatever the text says: who joins documents puts it there. `decode` is the
    exact inverse of `encode` wherever the tokenizer does not itself change the text first (one loaded from elsewhere
    may bring Unicode to a normal form).
    """

    begin: int | None = None
    """The id of the token that its makers put before each text; None where there is none."""

    def __init__(self, rules: tokenizers.Tokenizer, end: int) -> None:
        # a tokenizer.json may carry the truncation and padding it was once used with: they would lose text
        rules.no_truncation()
        rules.no_padding()
        rules.encode_special_tokens = True
        self.rules = rules
        self.end = end
        """The id of the end-of-document token."""
        self.vocabulary: int = max(rules.get_vocab(with_added_tokens=True).values()) + 1
        """The number of ids."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, the end token not among them."""
        return self.rules.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        encoded = self.rules.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: special tokens are empty, bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes[token] for token in ids).decode(errors="replace")

    def encode_special(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are written out, as a chat template writes them."""
        self.rules.encode_special_tokens = False
        try:
            return self.rules.encode(text, add_special_tokens=False).ids
        finally:
            self.rules.encode_special_tokens = True

    def token(self, place: int) -> str:
        """How an id is written."""
        return str(self.rules.id_to_token(place))

    def stream(self) -> "TextStream":
        """A decoder that is given one token at a time."""
        return TextStream(self)

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for; none for special tokens and for ids that are not used."""
        table = [b""] * self.vocabulary
        for token, place in self.rules.get_vocab(with_added_tokens=False).items():
            known = all(character in BYTES for character in token)
            table[place] = bytes(BYTES[character] for character in token) if known else token.encode()
        for place, added in self.rules.get_added_tokens_decoder().items():
            table[place] = b"" if added.special or place == self.end else added.content.encode()
        return tuple(table)

    @cached_property
    def byte_lengths(self) -> torch.Tensor:
        """[vocabulary] int64: the bytes each id stands for, 0 for special tokens. Bits per byte are counted with it."""
        return torch.tensor([len(token) for token in self.token_bytes], dtype=torch.int64)

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides how text becomes ids."""
        return hashlib.sha256(f"{self.end}\n{self.rules.to_str()}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `transformers` reads too (AutoTokenizer)."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.rules.id_to_token(self.end),
            "clean_up_tokenization_spaces": False,
        }
        atomic.write_text(folder / "tokenizer.json", self.rules.to_str(pretty=True) + "\n")
        atomic.write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """The tokenizer of a tokenizer.json, or of a folder with one, its end token named by the config beside it.

        Raises: UsageError where there is none, where it is not byte-level (the bytes of its tokens, and so bits per
        byte, could not be counted), or where no end token can be told.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        described = _read_json(file)
        if not isinstance(described.get("model"), dict) or "ByteLevel" not in _types(described.get("decoder")):
            raise UsageError(f"{file} is not a byte-level tokenizer (GPT-2, Llama 3 and Qwen have such)")
        rules = _rules(described, file)
        return cls(rules, _end(rules, file))


class TextStream:
    """Tokens in, text out as soon as it is whole: a character whose bytes are spread over tokens waits for the last."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes, often its own, sometimes none."""
        return self._decoder.decode(self._tokenizer.token_bytes[token])

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
    try:
        rules = tokenizers.Tokenizer.from_str(json.dumps(described))
        ids = rules.get_vocab(with_added_tokens=True).values()
    except Exception as error:  # the package raises Exception itself
        raise UsageError(f"{file} is not a tokenizer that can be used: {first_line(error)}") from None
    if not ids or max(ids) >= MOST_TOKENS:
        what = (
            f"has an id of {max(ids)}, and {MOST_TOKENS - 1} is the highest that is taken" if ids else "has no tokens"
        )
        raise UsageError(f"{file} {what}")
    return rules


def _types(decoder: Any) -> set[str]:
    """The kinds of decoder in a tokenizer.json: one, or those of a sequence."""
    if not isinstance(decoder, dict):
        return set()
    within = decoder.get("decoders")
    return {str(decoder.get("type"))}.union(*(_types(inner) for inner in (within if isinstance(within, list) else ())))


def _end(rules: tokenizers.Tokenizer, file: Path) -> int:
    beside = file.with_name("tokenizer_config.json")
    named = _read_json(beside).get("eos_token") if beside.exists() else None
    if isinstance(named, dict):
        named = named.get("content")
    if named is not None and not (isinstance(named, str) and _is_text(named)):
        raise UsageError(f"{beside} names an end token that is no text")
    for token in [named] if named else KNOWN_ENDS:
        end = rules.token_to_id(token)
        if end is not None:
            return int(end)
    wanted = f"'{named}', which {beside.name} names," if named else f"any of {', '.join(KNOWN_ENDS)}"
    raise UsageError(f"{file} has no end-of-document token: {wanted} is not in it")


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON can hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
