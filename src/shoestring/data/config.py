"""What a run reads: the `[data]` section of a recipe."""

import codecs
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from shoestring.errors import UsageError
from shoestring.method import find

Packing = Literal["stream", "isolated", "whole"]

Kind = Literal["text", "chat"]

Invalid = Literal["refuse", "replace", "skip"]

SMALLEST_BPE = 257
"""256 bytes and the end token: the least a byte-level vocabulary can hold."""

Vocabulary = Annotated[int, Interval(ge=1, le=1 << 20)]
"""Tokens of a tokenizer that is trained here. The largest in use has 262,144."""


@dataclass(frozen=True)
class TextOptions:
    """How the bytes of a corpus become documents; each is an option of `DataConfig`, where it is explained."""

    text_field: str = "text"
    encoding: str = "auto"
    invalid: Invalid = "refuse"


@dataclass(frozen=True)
class DataConfig:
    """The corpus, how it is cut into tokens, and what is held out.

    corpus: 'python-stdlib', 'hf:NAME[:config]', or a folder, glob or file (text, .jsonl, .parquet; also .gz and .zst).
    tokenizer: 'bpe' (trained on the corpus and cached), 'bytes', or a path to a byte-level tokenizer.json.
    vocabulary: the number of tokens 'bpe' is trained to, end token included.
    heldout: the share of documents held out, chosen by a hash of each document's content.
    kind: what a document is: 'text', or a 'chat', a line of JSON whose messages go through the model's chat template, and of
    which the answers alone are learnt.
    returns: of chats, what each answer came to and is told before it ('length', 'relevance'), so that it can be asked for.
    packing: 'stream' (windows run across documents), 'isolated' (a token never sees another document) or 'whole' (isolated, and
    a document is cut only where it is longer than a window).
    text_field: the field or column of text in .jsonl, .parquet and hub corpora.
    encoding: of text files and JSON lines, by its Python name; 'auto' heeds a byte order mark, and is UTF-8 without one.
    invalid: what is done with bytes that are no text, all of them counted: 'refuse' the file (a folder leaves it out),
    'replace' each by U+FFFD, or 'skip' the line or document.
    documents: path of an index of documents (`data.subset.write_index`), the only ones read; None: all.

    Raises: UsageError where 'bpe' is given fewer tokens than there are bytes, or the encoding is not known.
    """

    corpus: str = "python-stdlib"
    tokenizer: str = "bpe"
    vocabulary: Vocabulary = 4096
    heldout: Annotated[float, Interval(gt=0, le=0.5)] = 0.02
    packing: Packing = "stream"
    kind: Kind = "text"
    returns: tuple[str, ...] = ()
    text_field: str = "text"
    encoding: str = "auto"
    invalid: Invalid = "refuse"
    documents: str | None = None

    def __post_init__(self) -> None:
        if self.tokenizer == "bpe" and self.vocabulary < SMALLEST_BPE:
            raise UsageError(
                f"data.vocabulary = {self.vocabulary}: a byte-level vocabulary needs at least {SMALLEST_BPE}"
            )
        if self.returns and self.kind != "chat":
            raise UsageError(f"data.returns = {list(self.returns)}: text has no answers: give data.kind chat")
        for name in self.returns:
            find("data", name, "return")  # refuses one that is not there
        if self.encoding != "auto":
            try:
                "".encode(self.encoding)  # refuses what is an encoding of bytes, such as 'hex'
                codecs.getincrementaldecoder(self.encoding)
            except (LookupError, ValueError):
                raise UsageError(
                    f"data.encoding = {self.encoding!r} is no text encoding: 'auto', 'utf-8', 'utf-16' and 'cp1252' are such"
                ) from None

    @property
    def text(self) -> TextOptions:
        """The options that the reading of text heeds."""
        return TextOptions(self.text_field, self.encoding, self.invalid)
