"""SentencePiece's tokenizers as those of the `tokenizers` package: from a tokenizer.model, or from pieces and scores.

A tokenizer.model is a protocol buffer, `ModelProto` of sentencepiece_model.proto. The few fields that decide how text becomes ids
are read here, so that neither the sentencepiece nor the protobuf package is needed.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from shoestring.data.tokenizer_bytes import SPACE
from shoestring.data.tokenizer_package import check_character_map, made_by_package
from shoestring.errors import UsageError, first_line

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of piece. GGUF has the same."""

LONGEST = 1024
"""Characters of a piece, at most: the pairs of which it may be merged take a time that grows with their square."""

UNIGRAM, BPE = 1, 2
"""Kinds of model, as `TrainerSpec.model_type` has them."""


class Piece(NamedTuple):
    """A token: how it is written, its score, its type."""

    text: str
    score: float = 0.0
    kind: int = NORMAL


PROBE = "Text, 0 1; \u00e9t\u00e9 \u65e5\u672c \u0416 \u0639 \U0001f600 \ufb01 \u0378 \n\t  x"
"""Text of many kinds, one character of it unassigned."""


def rules_of(
    pieces: Sequence[Piece],
    model: int,
    *,
    prefix: bool = True,
    squeeze: bool = False,
    character_map: bytes = b"",
) -> tokenizers.Tokenizer:
    """The tokenizer of these pieces, in the order of their ids.

    model: UNIGRAM or BPE.
    prefix: whether a space is put before each text.
    squeeze: whether white space at both ends, and all but one space of several, is left out.
    character_map: SentencePiece's compiled normalisation; empty for none.
    Raises: UsageError where they make none.
    """
    if (long := max((len(piece.text) for piece in pieces), default=0)) > LONGEST:
        raise UsageError(f"a token has {long} characters, and {LONGEST} are the most that is taken")
    unknown = next((place for place, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)
    fallback = any(piece.kind == BYTE for piece in pieces)
    if model == UNIGRAM and unknown is None:
        raise UsageError("it has no token for what it does not know, which every such model has: it is damaged")
    if character_map:
        check_character_map(character_map)
    try:
        if model == UNIGRAM:
            # nine digits tell a float32; the package reads longer ones back as others
            scored = [(piece.text, float(f"{piece.score:.9g}")) for piece in pieces]
            made: Any = models.Unigram(scored, unk_id=unknown, byte_fallback=fallback)
        else:
            made = models.BPE(
                vocab={piece.text: place for place, piece in enumerate(pieces)},
                merges=_merges(pieces),
                unk_token=None if unknown is None else pieces[unknown].text,
                fuse_unk=True,
                byte_fallback=fallback,
            )
        rules = tokenizers.Tokenizer(made)
        steps: list[Any] = [normalizers.Precompiled(character_map)] if character_map else []
        if squeeze:
            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        steps += [normalizers.Prepend(SPACE)] if prefix else []
        rules.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        rules.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        own = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
        rules.add_tokens(
            [
                # a symbol of the user is looked for where spaces are written already
                AddedToken(piece.text, special=own[piece.kind], normalized=piece.kind == USER_DEFINED)
                for piece in pieces
                if piece.kind in own
            ]
        )
    except Exception as error:  # the package raises Exception itself
        raise UsageError(f"its tokens make no tokenizer: {first_line(error)}") from None
    _try_out(rules)
    return rules


def _try_out(rules: tokenizers.Tokenizer) -> None:
    """Read some text of many kinds. Raises: UsageError where the package fails on it: on a damaged table of normalisation it
    panics, which is no `Exception`."""
    made_by_package(lambda: rules.encode(PROBE, add_special_tokens=False), "text cannot be read with it, it is damaged")


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The pairs that are merged, the first first: those whose whole has the highest score, then the shortest."""
    places = {piece.text: place for place, piece in enumerate(pieces) if piece.kind in (NORMAL, UNUSED)}
    found: list[tuple[float, int, int, int, str, str]] = []
    for whole, place in places.items():
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in places and right in places:
                found.append((-pieces[place].score, len(whole), places[left], places[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def read_sentencepiece(path: Path) -> tuple[tokenizers.Tokenizer, int | None]:
    """(the tokenizer of a tokenizer.model, the id of its end token). Raises: UsageError where it is none that can be used."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return _read(content)
    except (UsageError, UnicodeDecodeError, struct.error) as error:
        raise UsageError(f"{path} is no SentencePiece model that can be used: {first_line(error)}") from None


def _read(content: bytes) -> tuple[tokenizers.Tokenizer, int | None]:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normaliser: dict[int, Any] = {}
    for number, value in _fields(content):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise UsageError(f"field {number} is no message")
        if number == 1:
            one = dict(_fields(value))
            pieces.append(Piece(_bytes(one, 1).decode(), _float(one.get(2)), _whole(one, 3, NORMAL)))
        elif number == 2:
            trainer.update(_fields(value))
        elif number == 3:
            normaliser.update(_fields(value))
    model = _whole(trainer, 3, UNIGRAM)
    if not pieces or model not in (UNIGRAM, BPE):
        raise UsageError(
            f"it has {len(pieces)} pieces and is of type {model}, and models of unigrams or merged pairs are known"
        )
    if _whole(trainer, 24, 0):
        raise UsageError("it puts white space after words")
    if not _whole(normaliser, 5, 1):
        raise UsageError("it does not write spaces as U+2581")
    rules = rules_of(
        pieces,
        model,
        prefix=bool(_whole(normaliser, 3, 1)),
        squeeze=bool(_whole(normaliser, 4, 1)),
        character_map=_bytes(normaliser, 2),
    )
    end = _whole(trainer, 42, 2)
    return rules, end if end < len(pieces) else None  # -1, for none, is written as 2^64 - 1


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: an int, or bytes. Raises: UsageError where it is none."""
    at = 0

    def whole() -> int:
        nonlocal at
        found, shift = 0, 0
        while True:
            if at >= len(content) or shift > 63:
                raise UsageError("it is damaged or cut short")
            byte = content[at]
            at += 1
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found

    while at < len(content):
        key = whole()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, whole()
            continue
        if kind not in (1, 2, 5):
            raise UsageError("it is damaged, or no protocol buffer")
        length = {1: 8, 5: 4}.get(kind) or (whole() if kind == 2 else 0)
        if at + length > len(content):
            raise UsageError("it is damaged or cut short")
        yield number, content[at : at + length]
        at += length


def _bytes(fields: dict[int, Any], number: int) -> bytes:
    value = fields.get(number, b"")
    if not isinstance(value, bytes):
        raise UsageError(f"field {number} is no text")
    return value


def _whole(fields: dict[int, Any], number: int, otherwise: int) -> int:
    value = fields.get(number, otherwise)
    if not isinstance(value, int):
        raise UsageError(f"field {number} is no whole number")
    return value


def _float(value: Any) -> float:
    if value is None:
        return 0.0
    if not isinstance(value, bytes) or len(value) != 4:
        raise UsageError("a score is no number")
    return float(struct.unpack("<f", value)[0])
