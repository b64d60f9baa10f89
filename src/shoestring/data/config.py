"""What a run reads: the `[data]` section of a recipe."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from shoestring.errors import UsageError
from shoestring.method import Count

Packing = Literal["stream", "isolated"]

SMALLEST_BPE = 257
"""256 bytes and the end token: the least a byte-level vocabulary can hold."""


@dataclass(frozen=True)
class DataConfig:
    """The corpus, how it is cut into tokens, and what is held out.

    corpus: 'python-stdlib', 'hf:NAME[:config]', or a folder, glob or file (text, .jsonl, .parquet; also .gz and .zst).
    tokenizer: 'bpe' (trained on the corpus and cached), 'bytes', or a path to a byte-level tokenizer.json.
    vocabulary: the number of tokens 'bpe' is trained to, end token included.
    heldout: the share of documents held out, chosen by a hash of each document's content.
    packing: 'stream' (windows run across documents) or 'isolated' (a token never sees another document).
    text_field: the field or column of text in .jsonl, .parquet and hub corpora.
    documents: path of an index of documents (`data.subset.write_index`), the only ones read; None: all.

    Raises: UsageError where 'bpe' is given fewer tokens than there are bytes.
    """

    corpus: str = "python-stdlib"
    tokenizer: str = "bpe"
    vocabulary: Count = 4096
    heldout: Annotated[float, Interval(gt=0, le=0.5)] = 0.02
    packing: Packing = "stream"
    text_field: str = "text"
    documents: str | None = None

    def __post_init__(self) -> None:
        if self.tokenizer == "bpe" and self.vocabulary < SMALLEST_BPE:
            raise UsageError(
                f"data.vocabulary = {self.vocabulary}: a byte-level vocabulary needs at least {SMALLEST_BPE}"
            )
