"""What a curator spends and how long it may go on: whoever chooses data is charged for choosing."""

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.author import Author, Authored, PrefixAuthor
from shoestring.contract.scorer import Scored, Scorer
from shoestring.errors import ShoestringError, UsageError

OpenScorer = Callable[[str], Scorer]
"""Opens the model at a place (a run, a folder of transformers, a GGUF file) as a scorer."""

OpenAuthor = Callable[[str], Author]
"""Opens the model at a place, one that was tuned to answer, as an author."""

OpenPrefixAuthor = Callable[[str], PrefixAuthor]
"""Opens the model at a place, one that can be trained, as a writer after vectors."""


class OutOfTime(ShoestringError):
    """The time for curating is spent. What was worked out is kept, and the same call goes on from there."""


class Account:
    """Seconds and charges of curating.

    seconds: how long it may take, from now on; None: as long as it takes.
    open_scorer: opens models by their place, for the curators that ask one; None: there are none.
    now: the clock, in seconds.
    open_author, open_prefix_author: open models by their place, for those that make text; None: there are none.
    """

    def __init__(
        self,
        seconds: float | None = None,
        open_scorer: OpenScorer | None = None,
        now: Callable[[], float] = time.monotonic,
        open_author: OpenAuthor | None = None,
        open_prefix_author: OpenPrefixAuthor | None = None,
    ) -> None:
        self.seconds, self.now, self._began = seconds, now, now()
        self.spent: Charge = NOTHING
        self._open, self._opened = open_scorer, dict[str, Scorer]()
        self._open_author, self._authors = open_author, dict[str, Author]()
        self._open_prefix_author, self._prefix_authors = open_prefix_author, dict[str, PrefixAuthor]()

    def charge(self, charge: Charge) -> None:
        """Add to what was spent."""
        self.spent += charge

    @property
    def taken(self) -> float:
        """Seconds since the account was opened."""
        return self.now() - self._began

    def check(self) -> None:
        """Raises: OutOfTime where there is no time left."""
        if self.seconds is not None and self.taken >= self.seconds:
            raise OutOfTime(
                f"the {self.seconds:g} seconds for curating are spent; what was worked out is kept: the same again goes on"
            )

    def scorer(self, place: str) -> Scorer:
        """The model at a place, opened once; what it computes is charged here. Raises: UsageError where none can be opened."""
        if self._open is None:
            raise UsageError(
                f"a model is needed to score text ({place}), and this account opens none: give open_scorer"
            )
        if place not in self._opened:
            self._opened[place] = _Charged(self._open(place), self)
        return self._opened[place]

    def author(self, place: str) -> Author:
        """The model at a place as an author, opened once; what it writes is charged here. Raises: UsageError as `scorer`."""
        if self._open_author is None:
            raise UsageError(
                f"a model is needed to write text ({place}), and this account opens none: give open_author"
            )
        if place not in self._authors:
            self._authors[place] = _ChargedAuthor(self._open_author(place), self)
        return self._authors[place]

    def prefix_author(self, place: str) -> PrefixAuthor:
        """The model at a place as a writer after vectors, opened once; charged as `author` is. Raises: UsageError as `scorer`."""
        if self._open_prefix_author is None:
            raise UsageError(
                f"a model is needed to write after vectors ({place}), and this account opens none: give open_prefix_author"
            )
        if place not in self._prefix_authors:
            self._prefix_authors[place] = _ChargedPrefixAuthor(self._open_prefix_author(place), self)
        return self._prefix_authors[place]


class _Charged:
    """A scorer whose work is charged to an account."""

    def __init__(self, scorer: Scorer, account: Account) -> None:
        self._scorer, self._account = scorer, account

    @property
    def digest(self) -> str:
        return self._scorer.digest

    def score(self, texts: Sequence[str]) -> Scored:
        found = self._scorer.score(texts)
        self._account.charge(found.spent)
        return found


class _ChargedAuthor:
    """An author whose work is charged to an account."""

    def __init__(self, author: Author, account: Account) -> None:
        self._author, self._account = author, account

    @property
    def digest(self) -> str:
        return self._author.digest

    def answers(self, asked: Sequence[str], seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        found = self._author.answers(asked, seeds, tokens, temperature)
        self._account.charge(found.spent)
        return found


class _ChargedPrefixAuthor:
    """A writer after vectors whose work is charged to an account."""

    def __init__(self, author: PrefixAuthor, account: Account) -> None:
        self._author, self._account = author, account

    @property
    def digest(self) -> str:
        return self._author.digest

    @property
    def embeddings(self) -> tuple[Tensor, float]:
        return self._author.embeddings

    def summaries(self, texts: Sequence[str], tokens: int) -> tuple[Tensor, Charge]:
        found, spent = self._author.summaries(texts, tokens)
        self._account.charge(spent)
        return found, spent

    def loss(self, prefixes: Tensor, texts: Sequence[str], tokens: int) -> tuple[Tensor, Charge]:
        found, spent = self._author.loss(prefixes, texts, tokens)
        self._account.charge(spent)
        return found, spent

    def written(self, prefixes: Tensor, seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        found = self._author.written(prefixes, seeds, tokens, temperature)
        self._account.charge(found.spent)
        return found
