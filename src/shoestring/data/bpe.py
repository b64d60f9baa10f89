"""The tokenizers made here: byte-level BPE trained on the corpus, and bytes as they are.

Byte-pair encoding as a tokenizer: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword
Units" (2016), arXiv:1508.07909; on bytes rather than characters: Radford et al., "Language Models are Unsupervised
Multitask Learners" (2019).
"""

import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from shoestring.data.tokenizer import END, TextTokenizer
from shoestring.data.tokenizer_bytes import BYTES

SAMPLE = 8 << 20
"""Characters of text a vocabulary is trained on. On 12 MB of Python source at 4096 tokens, 4, 8 and all 12 MB
give 3.70, 3.74 and 3.75 bytes a token; training takes time in proportion."""

PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",  # a word, with the space, point or underscore before it
        r"\p{N}{1,2}",  # digits by twos: a small vocabulary has better uses than a thousand numbers
        r" ?[^\s\p{L}\p{M}\p{N}]+(?:\s+(?!\S))?",  # marks, with the line break and indent that follow: `):\n       `
        r"\s+(?!\S)",  # a run of white space, but its last, which belongs to the word after it
        r"\s+",
    )
)
"""How text is split before pairs are merged: no token crosses these bounds, and every character is in one piece."""


LONGEST = 256
"""Characters of a word, a run of marks or of white space that a vocabulary is trained on in one piece: training takes time
in proportion to them for every pair that is merged. The longest in Python's own library has 138."""

_LONG = re.compile(rf"[^\s\d]{{{LONGEST + 1},}}|\s{{{LONGEST + 1},}}")


def train_bpe(sample: Iterable[str], vocabulary: int) -> TextTokenizer:
    """A byte-level BPE of `vocabulary` tokens, or of as many as the sample has pairs that occur twice.

    Id 0 is the end token, 1 to 256 are the bytes. The same sample in the same order gives the same tokenizer.
    """
    rules = _rules({}, Regex(PATTERN))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[AddedToken(END, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rules.train_from_iterator((piece for text in sample for piece in _without_long_words(text)), trainer)
    return TextTokenizer(rules, end=rules.get_vocab()[END])


def _without_long_words(text: str) -> Iterator[str]:
    """A text cut so that none of its words exceeds `LONGEST`; whole, where none does."""
    done = 0
    for long in _LONG.finditer(text):
        yield text[done : long.start()]
        yield from (text[at : min(at + LONGEST, long.end())] for at in range(long.start(), long.end(), LONGEST))
        done = long.end()
    yield text[done:]


def byte_tokenizer() -> TextTokenizer:
    """Bytes as tokens: ids 0 to 255 are the bytes, 256 is the end token."""
    rules = _rules(dict(BYTES), None)
    rules.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return TextTokenizer(rules, end=rules.get_vocab()[END])


def _rules(vocabulary: dict[str, int], pattern: Regex | None) -> tokenizers.Tokenizer:
    # without its cache of words: at these vocabularies threads wait for its lock longer than merging takes
    rules = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], cache_capacity=0))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [] if pattern is None else [pre_tokenizers.Split(pattern, behavior="isolated")]
    rules.pre_tokenizer = pre_tokenizers.Sequence([*split, bytes_only])
    rules.decoder = decoders.ByteLevel()
    return rules
