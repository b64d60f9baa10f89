"""The tokenizer of a GGUF file, from its metadata.

'gpt2' is a byte-level byte-pair encoding with its merges, and the name of a way to cut text; 'llama' is SentencePiece's byte-pair
encoding, as pieces and scores; 't5' its unigram model. Where the file carries a whole tokenizer.json, that is taken.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from shoestring.data.tokenizer import MOST_TOKENS, TextTokenizer
from shoestring.data.tokenizer_package import made_by_package, rules_of_json
from shoestring.data.tokenizer_sentencepiece import BPE, CONTROL, NORMAL, UNIGRAM, USER_DEFINED, Piece, rules_of
from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = _WORDS + r"\p{N}" + _REST
LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPLITS = {
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "smaug-bpe": LLAMA3,
    "dbrx": LLAMA3,
    "falcon3": LLAMA3,
    "tekken": TEKKEN,
}
"""Patterns of llama.cpp by which text is cut before pairs are merged, under its names for them (`tokenizer.ggml.pre`)."""

DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Names under which each digit stands alone, and the rest is cut as GPT-2's."""

GPT2 = {"gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "dolma"}
"""Names under which text is cut as GPT-2's."""

WHOLE = {"llama-bpe", "llama3", "llama-v3", "tekken"}
"""Names under which a piece of text that is a token is not made of pairs."""

PREFIX = "tokenizer.ggml."


def tokenizer_of(metadata: Mapping[str, Any]) -> tuple[TextTokenizer, tuple[str, ...]]:
    """(the tokenizer that a GGUF file's metadata describes, a line each for what is not as its makers had it).

    Raises: UsageError where there is none, or none that can be used.
    """
    known = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    tokens = _list(known, "tokens", str)
    if not tokens:
        raise UsageError("it has no tokens")
    if len(tokens) >= MOST_TOKENS:
        raise UsageError(f"it has {len(tokens)} tokens, and {MOST_TOKENS} are the most that is taken")
    kind, notes = known.get("model"), tuple[str, ...]()
    whole = metadata.get("tokenizer.huggingface.json")
    if whole is not None:
        rules = _whole(whole)
    elif kind == "gpt2":
        rules, notes = _byte_level(known, tokens)
    elif kind in ("llama", "t5"):
        rules = _sentencepiece(known, tokens, UNIGRAM if kind == "t5" else BPE)
    else:
        raise UsageError(f"its tokenizer is of the kind '{kind}': known are gpt2, llama and t5")
    end, begin = _token(known, "eos_token_id", len(tokens)), _token(known, "bos_token_id", len(tokens))
    if end is None:
        raise UsageError("it names no end token")
    if not known.get("add_bos_token", kind == "llama"):
        begin = None
    return TextTokenizer(rules, end, begin), notes


def ends_of(metadata: Mapping[str, Any]) -> list[int]:
    """The ids of the tokens at which generation stops: of text, of a turn, of a message."""
    found = [metadata.get(f"{PREFIX}{name}_token_id") for name in ("eos", "eot", "eom")]
    return sorted({place for place in found if isinstance(place, int) and not isinstance(place, bool)})


def _byte_level(known: Mapping[str, Any], tokens: Sequence[str]) -> tuple[tokenizers.Tokenizer, tuple[str, ...]]:
    merges = [tuple(pair.split(" ")) for pair in _list(known, "merges", str)]
    if any(len(pair) != 2 for pair in merges):
        raise UsageError("a merge is not of two tokens")
    name = known.get("pre", "gpt-2")
    notes = (
        ()
        if name in {*SPLITS, *DIGITS, *GPT2}
        else (
            f"its tokenizer cuts text in a way named '{name}', which is not known here: as GPT-2's is taken, and some text "
            "becomes other tokens",
        )
    )
    types = _types(known, tokens)
    vocabulary = {token: place for place, token in enumerate(tokens)}
    # a list may not be empty in the file: writers put in a pair of control tokens, which text never has
    special = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL}
    merges = [pair for pair in merges if "".join(pair) in vocabulary or not special.issuperset(pair)]
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]

    def make() -> tokenizers.Tokenizer:
        rules = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in WHOLE))
        rules.pre_tokenizer = pre_tokenizers.Sequence(_steps(name))
        rules.decoder = decoders.ByteLevel()
        rules.add_tokens(added)
        return rules

    return made_by_package(make, "its tokens make no tokenizer"), notes


def _steps(name: Any) -> list[Any]:
    """How text is cut under this name of llama.cpp's, before pairs are merged."""
    if name in SPLITS:
        return [
            pre_tokenizers.Split(Regex(SPLITS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if name in DIGITS else []
    return [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]


def _sentencepiece(known: Mapping[str, Any], tokens: Sequence[str], model: int) -> tokenizers.Tokenizer:
    scores = [float(score) for score in _numbers(known, "scores", len(tokens))]
    pieces = [Piece(*each) for each in zip(tokens, scores, _types(known, tokens), strict=True)]
    character_map = bytes(value & 255 for value in _numbers(known, "precompiled_charsmap", None))
    return rules_of(
        pieces,
        model,
        prefix=known.get("add_space_prefix", True) is True,
        squeeze=known.get("remove_extra_whitespaces", False) is True,
        character_map=character_map,
    )


def _whole(text: Any) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json within the metadata."""
    if not isinstance(text, str):
        raise UsageError("its tokenizer.json is no text")
    try:
        described = parse_json(text.encode())
    except NotJson as error:
        raise UsageError(f"its tokenizer.json is not JSON: {error}") from None
    return rules_of_json(described, "its tokenizer.json is none that can be used")


def _list(known: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    found = known.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
        raise UsageError(f"{PREFIX}{key} is no list of texts")
    return found


def _numbers(known: Mapping[str, Any], key: str, count: int | None) -> list[Any]:
    """A list of numbers, of this length where one is given, and zeros where there is none."""
    found = known.get(key)
    if found is None:
        return [0] * (count or 0)
    if not hasattr(found, "tolist") or (count is not None and len(found) != count):
        raise UsageError(f"{PREFIX}{key} is no list of {'' if count is None else f'{count} '}numbers")
    listed: list[Any] = found.tolist()
    return listed


def _types(known: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    if "token_type" not in known:
        return [NORMAL] * len(tokens)
    return _numbers(known, "token_type", len(tokens))


def _token(known: Mapping[str, Any], key: str, count: int) -> int | None:
    place = known.get(key)
    if place is None:
        return None
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < count:
        raise UsageError(f"{PREFIX}{key} is the id of no token")
    return place
