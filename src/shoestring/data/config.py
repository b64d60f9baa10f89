"""What a run reads: the `[data]` section of a recipe."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import BeforeValidator, StringConstraints
from pydantic_core import PydanticCustomError

from shoestring.config import Choice, Pick, PickList, listed
from shoestring.data.mixture import MIXTURE, Domain, Mixture
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import find

Packing = Literal["stream", "isolated", "whole"]

Kind = Literal["text", "chat", "answers"]

Invalid = Literal["refuse", "replace", "skip"]

DEFAULT_CORPUS = "python-stdlib"

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
    control_field: str = ""


@dataclass(frozen=True)
class SourceConfig:
    """One corpus of several.

    name: of the domain, by which a mixture knows it.
    corpus: as data.corpus.
    text_field: as data.text_field.
    encoding: as data.encoding.
    invalid: as data.invalid.
    control_field: as data.control_field.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    corpus: str
    text_field: str = "text"
    encoding: str = "auto"
    invalid: Invalid = "refuse"
    control_field: str = ""


def _sources(value: Any) -> Any:
    """The tables of sources; from flags a table by name: `--data.source.code.corpus PATH`."""
    if isinstance(value, Mapping):
        value = listed([], value)
    if isinstance(value, list | tuple):
        known = [field.name for field in fields(SourceConfig)]
        for table in value:
            for key in table if isinstance(table, Mapping) else ():
                if key not in known:
                    raise PydanticCustomError("source", "{reason}", {"reason": f"'{key}': {did_you_mean(key, known)}"})
    return value


@dataclass(frozen=True)
class DataConfig:
    """The corpus, how it is cut into tokens, and what is held out.

    corpus: 'python-stdlib', 'hf:NAME[:config]', or a folder, glob or file (text, .jsonl, .parquet; also .gz and .zst).
    tokenizer: 'bpe' (trained on the corpus and cached), 'bytes', or a path to a byte-level tokenizer.json.
    vocabulary: the number of tokens 'bpe' is trained to, end token included.
    heldout: the share of documents held out, chosen by a hash of each document's content.
    kind: what a document is: 'text'; a 'chat', a line of JSON whose messages go through the model's chat template, and of which
    the answers alone are learnt; or 'answers', a line of JSON with 'prompt' and 'answer', of which the latter is learnt.
    returns: of chats, what each answer came to and is told before it ('length', 'relevance'), so that it can be asked for.
    packing: 'stream' (windows run across documents), 'isolated' (a token never sees another document) or 'whole' (isolated, and
    a document is cut only where it is longer than a window).
    text_field: the field or column of text in .jsonl, .parquet and hub corpora.
    encoding: of text files and JSON lines, by its Python name; 'auto' heeds a byte order mark, and is UTF-8 without one.
    invalid: what is done with bytes that are no text, all of them counted: 'refuse' the file (a folder leaves it out),
    'replace' each by U+FFFD, or 'skip' the line or document.
    control_field: a field or column whose value is written before and after the text ('[genre: letter]'), so that text of its kind
    can be asked for; '': none.
    documents: path of an index of documents (`data.subset.write_index`), the only ones read; None: all.
    rows: how documents are laid in rows, each apart from the others, in place of windows; None: windows, as packing says.
    length: how long the rows of a step are, as the budget is spent; None: always model.context.
    selection: which rows of a larger batch are trained on, by the model as it is; None: all.
    interventions: experiments on what is read, several in one run: texts that are planted in its rows.
    source: several corpora, each a domain with a name, in place of data.corpus; they share one tokenizer. None: one corpus.
    mixture: how much of each source is read, as the budget is spent; None: all equally often.

    Raises: UsageError where 'bpe' is given fewer tokens than there are bytes, the encoding is not known, or keys do not go
    together.
    """

    corpus: str = DEFAULT_CORPUS
    tokenizer: str = "bpe"
    vocabulary: Vocabulary = 4096
    heldout: Annotated[float, Interval(gt=0, le=0.5)] = 0.02
    packing: Packing = "stream"
    kind: Kind = "text"
    returns: tuple[str, ...] = ()
    text_field: str = "text"
    encoding: str = "auto"
    invalid: Invalid = "refuse"
    control_field: str = ""
    documents: str | None = None
    rows: Annotated[Choice, Pick("data", "packing")] | None = None
    length: Annotated[Choice, Pick("data", "length")] | None = None
    selection: Annotated[Choice, Pick("data", "selection")] | None = None
    interventions: Annotated[tuple[Choice, ...], PickList("intervention", ("data",))] = ()
    source: Annotated[tuple[SourceConfig, ...], BeforeValidator(_sources)] | None = None
    mixture: Annotated[Choice, MIXTURE] | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.packing == "stream":
            raise UsageError(
                f"data.rows = {self.rows.name} keeps documents apart, and held-out text is read in windows: give data.packing = "
                "isolated too, so that it is read likewise"
            )
        if self.source:
            self._check_sources(self.source)
        elif self.mixture is not None:
            raise UsageError(
                f"data.mixture = {self.mixture.name}: a mixture is of several corpora: give data.source too"
            )
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

    def _check_sources(self, sources: tuple[SourceConfig, ...]) -> None:
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise UsageError(f"data.source: two are named '{max(names, key=names.count)}'")
        if self.corpus != DEFAULT_CORPUS:
            raise UsageError(
                f"data.corpus = {self.corpus} beside data.source: make it one of the sources, or leave it out"
            )
        if self.documents is not None:
            raise UsageError("data.documents is an index of one corpus: leave it out where there are sources")
        for source in sources:
            self.of_source(source)
        self.mixture_of([Domain(name, 1) for name in names])

    def of_source(self, source: SourceConfig) -> "DataConfig":
        """The configuration of one source alone."""
        own = {key: getattr(source, key) for key in ("corpus", "text_field", "encoding", "invalid", "control_field")}
        return replace(self, source=None, mixture=None, **own)

    def mixture_of(self, domains: Sequence[Domain]) -> Mixture:
        """The mixture of these domains. Raises: UsageError where it is of others."""
        made: Mixture = (self.mixture or MIXTURE.choice()).build(domains)
        return made

    @property
    def text_alone(self) -> "DataConfig":
        """What text there is and how it is held out and judged, without how it is laid out and how much is read of each source."""
        return replace(self, rows=None, length=None, selection=None, mixture=None, interventions=())

    @property
    def corpora(self) -> str:
        """What is read, for people."""
        return self.corpus if not self.source else ", ".join(source.corpus for source in self.source)

    @property
    def text(self) -> TextOptions:
        """The options that the reading of text heeds."""
        return TextOptions(self.text_field, self.encoding, self.invalid, self.control_field)
