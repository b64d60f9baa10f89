"""A byte-level tokenizer written into a GGUF file, as llama.cpp's 'gpt2' tokenizer."""

import json
import logging
from typing import TYPE_CHECKING, Any

from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError

if TYPE_CHECKING:
    from gguf import GGUFWriter

log = logging.getLogger(__name__)

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_WORDS + r"\p{N}" + _REST: "qwen2", _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe"}
"""How text is cut before pairs are merged, where llama.cpp knows the pattern, and its name for it."""

NEAREST = "qwen2"
"""What other patterns are called. llama.cpp knows patterns by name alone. This one it has had for long, and of those that
keep white space as it is when ids become text again it is near to the pattern of the tokenizers made here: tried once on Python
source and 1024 tokens, 95 % of the ids were the same, and there were 5 % more."""

WHOLE = "tokenizer.huggingface.json"
"""The key of GGUF for a tokenizer.json."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of token."""


def write_tokenizer(writer: "GGUFWriter", tokenizer: TextTokenizer, vocabulary: int) -> None:
    """Add the tokens, their merges and the end token. vocabulary: of the model; ids beyond the tokenizer's are filled up.

    Where llama.cpp will cut some text into other tokens than `tokenizer` does, that is logged. Raises: UsageError where it is
    no byte-pair encoding.
    """
    described = json.loads(tokenizer.rules.to_str())
    if described["model"].get("type") != "BPE":
        raise UsageError(
            f"GGUF holds byte-pair encodings here, and this tokenizer is a {described['model'].get('type')}"
        )
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    types = [UNUSED] * vocabulary
    for token, place in tokenizer.rules.get_vocab(with_added_tokens=False).items():
        tokens[place], types[place] = token, NORMAL
    for place, added in tokenizer.rules.get_added_tokens_decoder().items():
        special = added.special or place == tokenizer.end
        tokens[place], types[place] = added.content, CONTROL if special else USER_DEFINED
    if "ByteLevel" not in json.dumps(described.get("decoder")):
        raise UsageError("GGUF holds byte-level tokenizers here, and this one has pieces of text (SentencePiece)")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    name = _pattern(described.get("pre_tokenizer"))
    if name is None and merges:
        log.warning(
            f"llama.cpp does not know how this tokenizer cuts text, and will cut it as '{NEAREST}' does: it reads some text as "
            "other tokens than those trained on; the ids of tokens mean the same"
        )
        # whoever reads the whole tokenizer, this package among them, cuts text as it does
        writer.add_string(WHOLE, tokenizer.rules.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name or NEAREST)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # a list may not be empty: this merge, of what is no part of a word, never happens
    writer.add_token_merges(merges or [f"{tokens[tokenizer.end]} {tokens[tokenizer.end]}"])
    writer.add_eos_token_id(tokenizer.end)
    writer.add_bos_token_id(tokenizer.end if tokenizer.begin is None else tokenizer.begin)
    writer.add_add_bos_token(tokenizer.begin is not None)


def _pattern(described: Any) -> str | None:
    """llama.cpp's name for the way a tokenizer.json cuts text, if it has one."""
    steps = (
        described.get("pretokenizers", [])
        if isinstance(described, dict) and described.get("type") == "Sequence"
        else [described]
    )
    found = tuple(name for step in steps if (name := _step(step)) != WHOLE)
    if found == (DIGITS, "gpt-2"):
        return "smollm"
    return found[0] if len(found) == 1 and found[0] != DIGITS else None


DIGITS, WHOLE = "digits", ""
"""Steps of cutting text: each digit alone; and one that cuts nothing."""


def _step(described: Any) -> str | None:
    """What a step of a tokenizer.json's way is called; None for one without a name."""
    if not isinstance(described, dict):
        return None
    kind = described.get("type")
    if kind == "ByteLevel" and not described.get("add_prefix_space", False):
        return "gpt-2" if described.get("use_regex", True) else WHOLE
    if kind == "Digits" and described.get("individual_digits"):
        return DIGITS
    if kind == "Split" and described.get("behavior") == "Isolated":
        return SPLITS.get(str(described.get("pattern", {}).get("Regex")))
    return None
