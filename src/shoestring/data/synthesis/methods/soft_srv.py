"""Texts like those of a corpus, written by a frozen model behind vectors that a small network makes of a sample."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval

from shoestring.budget.charge import Charge
from shoestring.contract.author import Authored, AuthoredText, PrefixAuthor
from shoestring.data.curation.account import Account
from shoestring.data.curation.documents import Documents
from shoestring.data.synthesis.methods.wrap import passages, word_runs
from shoestring.data.synthesis.prefix_network import PrefixNetwork, Reconstruction
from shoestring.data.synthesis.synthesise import Instruction, PreparedAuthor
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, NonNegative, Positive, Whole, method


@method(
    "data",
    kind="synthesis",
    name="soft_srv",
    paper="No more hard prompts: SoftSRV prompting for synthetic data generation, arXiv:2410.16534",
    claim="on coding, mathematics and reasoning, data for fine-tuning a small Gemma that is better than that of prompts in words, "
    "and closer to the target distribution by MAUVE",
    cost="steps * batch texts read forward and backward by the frozen model, then one text written for each passage; all charged",
)
class SoftSRV:
    """Trains vectors that have a frozen model write a passage again, and samples new texts behind those of each passage.

        z = summary(x),   P(z) [length, width],   min -1/N sum_x log p(x | P(z(x))),   then  y ~ p(. | P(z(x)))

    The model need not be tuned to answer, and no instruction is worded. z is what the model itself makes of x: the mean of its
    last hidden states. Each vector of P has a small network of its own, of two layers (`PrefixNetwork`).

    The paper trains as an autoencoder, z = E(x) with E an embedder of its own; here E is the frozen model. The shape of P, its
    sizes and the optimiser could not be checked, as its full text was not at hand. A prompt that is the same for all samples is
    left out, and so is the report of similarity to the target text. Texts that the limit of tokens ended are kept, as a model that
    was not tuned may not end its texts. Of two texts that are nearly the same, the second is dropped, and so is one that is nearly
    one of those trained on.

    author: where the model lies that writes; it can be trained, and stays as it is.
    length: vectors before a text. hidden: features between the two layers of each.
    steps, batch, rate: of the training, and its learning rate by Adam.
    samples: passages that are trained on, at most, one a document.
    passage: characters of a passage, at most; a longer line is cut.
    shortest: characters of a passage, at least: what is shorter is passed over.
    each: texts that are written for a passage.
    tokens: of a text, at most.
    temperature: of the draws; 0: the likeliest token.
    least: length of a text as a share of its passage's, at least.
    copied: the largest share of a text's runs of 5 words that passages trained on and texts before it may have.
    seed: of the training and of the draws.
    """

    def __init__(
        self,
        *,
        author: str,
        length: Count = 16,
        hidden: Count = 64,
        steps: Count = 400,
        batch: Count = 8,
        rate: Positive = 1e-3,
        samples: Count = 2000,
        passage: Annotated[int, Interval(ge=20, le=1 << 20)] = 600,
        shortest: Count = 100,
        each: Count = 1,
        tokens: Count = 200,
        temperature: NonNegative = 1.0,
        least: Fraction = 0.2,
        copied: Fraction = 0.5,
        seed: Whole = 0,
    ) -> None:
        if each > 1 and temperature == 0:
            raise UsageError(f"soft_srv: each = {each} texts at temperature = 0 are one text: set one of them")
        self.author, self.samples, self.passage, self.shortest, self.each = author, samples, passage, shortest, each
        self.tokens, self.temperature, self.least, self.copied, self.seed = tokens, temperature, least, copied, seed
        self.training = Reconstruction(length, hidden, steps, batch, rate, tokens, seed)
        self._known = set[int]()

    def digest(self, account: Account) -> str:
        return account.prefix_author(self.author).digest

    def prepare(self, documents: Documents, account: Account, folder: Path) -> PreparedAuthor:
        """As `Prepares.prepare`. Raises: UsageError too where no passage is long enough."""
        texts = self._samples(documents)
        if not texts:
            raise UsageError(f"soft_srv: no passage has {self.shortest} characters: set shortest smaller")
        self._known = {run for text in texts for run in _runs(text)}
        model = account.prefix_author(self.author)
        network, spent = self.training.trained(model, texts, folder, account)
        return PreparedAuthor(_Behind(model, network, account), spent)

    def asked(self, document: str) -> Sequence[Instruction]:
        return [
            Instruction(passage, passage, f"like it, {number + 1}")
            for passage in passages(document, self.passage)
            if len(passage) >= self.shortest
            for number in range(self.each)
        ]

    def fault(self, asked: Instruction, answer: AuthoredText) -> str:
        if len(answer.text) < max(1.0, self.least * len(asked.seed)):
            return "too short"
        own = _runs(answer.text)
        return "nearly a text that is there" if len(own & self._known) > self.copied * len(own) else ""

    def remember(self, text: str) -> None:
        self._known |= _runs(text)

    def _samples(self, documents: Documents) -> list[str]:
        """A passage of each of at most `samples` documents, drawn by the seed."""
        chosen, found = set(documents.sample(self.samples, self.seed).tolist()), list[str]()
        for place, text in enumerate(documents):
            if place not in chosen:
                continue
            long = [one for one in passages(text, self.passage) if len(one) >= self.shortest]
            if long:
                found.append(long[zlib.crc32(f"{self.seed} {place}".encode()) % len(long)])
        return found


class _Behind:
    """Writes behind the vectors of what it is given: an `Author` whose instructions are the samples themselves."""

    def __init__(self, model: PrefixAuthor, network: PrefixNetwork, account: Account) -> None:
        self.model, self.network, self.account = model, network, account

    @property
    def digest(self) -> str:
        return self.model.digest

    def answers(self, asked: Sequence[str], seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        if not asked:
            return Authored(())
        summaries, spent = self.model.summaries(asked, tokens)
        own = Charge(flops=self.network.flops(len(asked), False))
        self.account.charge(own)
        with torch.no_grad():
            written = self.model.written(self.network(summaries), seeds, tokens, temperature)
        return Authored(written.texts, spent + own + written.spent)


def _runs(text: str) -> set[int]:
    """Numbers of a text's runs of words; of a shorter one, of all its words."""
    runs = word_runs(text) or {tuple(text.lower().split())}
    return {zlib.crc32(" ".join(run).encode()) for run in runs}
