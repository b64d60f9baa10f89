"""The bytes that each token of a tokenizer stands for, without which bits a byte cannot be counted.

Two spellings are known. A byte-level vocabulary (GPT-2, Llama 3, Qwen, SmolLM) writes each byte as one printable character. That
of SentencePiece (Llama 2, Mistral, Gemma) writes text as it is, a space as U+2581, and bytes of other characters as <0xNN>.
"""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models

from shoestring.errors import UsageError

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

KEEP_TEXT = {"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation", "UnicodeScripts", "FixedLength", "Sequence"}
"""Pre-tokenizers that cut text and lose none of it, unless they are told to remove what they cut at."""

NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
"""Bytes that no text has."""


def _byte_characters() -> dict[str, int]:
    """The printable characters that stand for bytes in a byte-level vocabulary (GPT-2's table), and their bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_characters()


class Spelling(NamedTuple):
    """How a tokenizer spells text.

    table: the bytes of each id; none for special tokens, and for ids that are not used.
    rules: the tokenizer, changed so that its tokens are the text, and nothing else: no space is put before it.
    prefix: the text that is to be put before each text, so that the tokens are those of the original: one space, or nothing.
    extra: bytes that the tokens of each text have beside its own: those of a space before it, whoever puts it there.
    caveats: a line each for text whose tokens do not stand for just its bytes.
    """

    table: tuple[bytes, ...]
    rules: tokenizers.Tokenizer
    prefix: str
    extra: int
    caveats: tuple[str, ...]


def spelling(rules: tokenizers.Tokenizer, end: int) -> Spelling:
    """How a tokenizer spells text. Raises: UsageError where its tokens do not tell the text."""
    described = _described(rules)
    model, kind = described["model"], _kind(described)
    for reason, wrong in {
        f"its model is a {model.get('type')}": model.get("type") not in ("BPE", "Unigram"),
        "it marks the ends of words": model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"),
    }.items():
        if wrong:
            raise UsageError(f"the bytes of its tokens are not known: {reason}")
    for step in _steps(described["pre_tokenizer"], "pretokenizers"):
        if step["type"] not in KEEP_TEXT or step.get("behavior") == "Removed":
            raise UsageError(f"it loses text: its pre-tokenizer {step['type']} removes white space, or what it cuts at")
    strips = any(step["type"] == "Strip" for step in _steps(described["normalizer"], "normalizers"))
    extra = len(_without_prefix(copy.deepcopy(described)))
    prefix = (
        "" if strips else _without_prefix(described)
    )  # where ends are stripped, a space before the text would be, too
    changed = rules
    if prefix or model["dropout"]:  # which would make ids a matter of chance
        whole = json.loads(rules.to_str())
        whole |= {"normalizer": described["normalizer"], "pre_tokenizer": described["pre_tokenizer"]}
        whole["model"].pop("dropout", None)
        changed = tokenizers.Tokenizer.from_str(json.dumps(whole))
    changed.encode_special_tokens = True
    table, caveats = _table(rules, described, kind, end)
    return Spelling(table, changed, prefix, extra, caveats)


def _described(rules: tokenizers.Tokenizer) -> dict[str, Any]:
    """What `rules.to_str` says, but for tokens and merges, which as values of Python take many times their memory."""
    parts = {name: getattr(rules, name) for name in ("normalizer", "pre_tokenizer", "decoder")}
    described = {name: None if part is None else json.loads(part.__getstate__()) for name, part in parts.items()}
    model = rules.model
    if isinstance(model, models.BPE):
        named = ("unk_token", "byte_fallback", "dropout", "end_of_word_suffix", "continuing_subword_prefix")
        return {**described, "model": {"type": "BPE", **{name: getattr(model, name) for name in named}}}
    whole = json.loads(rules.to_str())["model"]
    return {
        **described,
        "model": {"dropout": None, **{key: whole[key] for key in whole if key not in ("vocab", "merges")}},
    }


def _kind(described: dict[str, Any]) -> str:
    """'bytes' or 'sentencepiece'. Raises: UsageError for anything else."""
    before = {step["type"] for step in _steps(described["pre_tokenizer"], "pretokenizers")}
    before |= {step["type"] for step in _steps(described["normalizer"], "normalizers")}
    after = {step["type"] for step in _steps(described["decoder"], "decoders")}
    if "ByteLevel" in before and "ByteLevel" in after:
        return "bytes"
    if "Metaspace" in before or any(map(_writes_spaces, _steps(described["normalizer"], "normalizers"))):
        return "sentencepiece"
    raise UsageError("it is neither byte-level (as GPT-2, Llama 3 and Qwen) nor SentencePiece's (as Llama 2 and Gemma)")


def _steps(described: Any, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder, those within sequences one by one."""
    if isinstance(described, dict):
        if described.get("type") == "Sequence":
            for inner in described[key]:
                yield from _steps(inner, key)
        else:
            yield described


def _writes_spaces(step: dict[str, Any]) -> bool:
    return step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE


def _without_prefix(described: dict[str, Any]) -> str:
    """Have nothing be put before a text, and return what was: it is put there before the text is encoded.

    The package's own way leaves out the space before a text that begins with one: two texts would have the same tokens.
    """
    found = ""
    for step in _steps(described["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            step["prepend_scheme"], found = "never", " "
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            step["add_prefix_space"], found = False, " "
    for step in _steps(described["normalizer"], "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            step["prepend"], found = "", " "
    return found


def _table(
    rules: tokenizers.Tokenizer, described: dict[str, Any], kind: str, end: int
) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """(the bytes of each id, the caveats)."""
    vocabulary, model = rules.get_vocab(with_added_tokens=False), described["model"]
    table = [b""] * (max(rules.get_vocab(with_added_tokens=True).values()) + 1)
    fallback = bool(model.get("byte_fallback"))
    for token, place in vocabulary.items():
        table[place] = _byte_level(token) if kind == "bytes" else _pieces(token, fallback)
    unknown = model.get("unk_token"), model.get("unk_id")
    for missing in (vocabulary.get(unknown[0]) if isinstance(unknown[0], str) else None, unknown[1]):
        if isinstance(missing, int) and 0 <= missing < len(table):
            table[missing] = b""
    caveats = []
    for place, added in rules.get_added_tokens_decoder().items():
        content = added.content.replace(SPACE, " ") if kind != "bytes" and added.normalized else added.content
        table[place] = b"" if added.special or place == end else content.encode()
        if not added.special and (added.lstrip or added.rstrip):
            caveats.append(f"white space beside '{added.content}' is lost")
    changes = [
        step["type"]
        for step in _steps(described["normalizer"], "normalizers")
        if step["type"] not in ("Prepend", "ByteLevel") and not _writes_spaces(step)
    ]
    if changes:
        caveats.append(f"text is changed first ({', '.join(changes)}), and the bytes are those of the changed text")
    if kind == "bytes":
        lost = {byte for letter, byte in BYTES.items() if letter not in vocabulary} - NEVER_IN_UTF8
        if lost:
            listed = ", ".join(f"0x{byte:02X}" for byte in sorted(lost)[:8])
            caveats.append(f"{len(lost)} bytes are in no token, and characters that need them lose them ({listed})")
    else:
        caveats.append(f"'{SPACE}' (U+2581) is read as a space")
        if not (fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))):
            caveats.append("characters that are in no token are read as the unknown token, whose bytes are not counted")
    return tuple(table), tuple(caveats)


def _byte_level(token: str) -> bytes:
    known = all(character in BYTES for character in token)
    return bytes(BYTES[character] for character in token) if known else token.encode()


def _pieces(token: str, fallback: bool) -> bytes:
    """The bytes of a SentencePiece token."""
    byte = _BYTE.fullmatch(token) if fallback else None
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
