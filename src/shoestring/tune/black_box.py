"""Prompts tuned without gradients: the model is asked, and never differentiated."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, Seed, Whole, method
from shoestring.tune.cloze import ClozePattern, scores
from shoestring.tune.prompt_embedding import with_prompt

INSTALL = "pip install 'shoestring[black-box]'"


@dataclass(frozen=True)
class Tuned:
    """What tuning came to.

    pattern: the one that was chosen, with the prompt before its question. losses: cross-entropy on the texts, of the pattern
    alone, after the evolution, and after the local search. spent: passes of the model, by calls and positions read.
    """

    pattern: ClozePattern
    losses: tuple[float, float, float]
    spent: Charge


@method(
    "tune",
    kind="few-shot",
    name="bbt_rgb",
    paper="Make Prompt-based Black-Box Tuning Colorful: Boosting Model Generalization from Three Orthogonal Perspectives, "
    "arXiv:2305.08088",
    claim="three complementary parts improve black-box tuning on tasks of language understanding and inference",
    cost="evolution + search forward passes over the texts; no gradient, and no memory for one",
)
class BlackBoxTuning:
    """Find a soft prompt by asking the model for its likelihoods alone.

        prompt = p_0 + A z,   A [n width, d] normal and fixed,   min_z  mean -log softmax_l( s(l | prompt, x) )

    with s the log-likelihood of a class's word, or the mean of those of several. First an evolution strategy (CMA-ES) moves z far,
    then a local search (COBYLA) moves it a little: the two stages of the paper. Its other parts: the best of some patterns is where
    it begins (of instructions and demonstrations, the caller's), and `automatic_words` finds words for classes.

    length: n, vectors of the prompt. dimension: d, of z. evolution, search: passes over the texts of the two stages, at most.
    step: CMA-ES's first standard deviation of z. scale: the standard deviation of an entry of A, in those of the embeddings over
    the square root of d. seed: of all that is drawn.
    """

    def __init__(
        self,
        model: LanguageModule,
        placeholder: int,
        *,
        length: Count = 10,
        dimension: Count = 50,
        evolution: Count = 300,
        search: Whole = 100,
        step: Positive = 1.0,
        scale: Positive = 1.0,
        seed: Seed = 0,
    ) -> None:
        self.model, self.evolution, self.search, self.step, self.seed = model, evolution, search, step, seed
        self.prompt = with_prompt(model, length, placeholder)
        self.start = self.prompt.prompt.clone()
        spread = float(self.prompt.weight.detach().float().std())
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.start.numel(), dimension, generator=generator)
        self.projection = drawn * (scale * spread / dimension**0.5)
        self._calls = self._flops = self._read = 0

    def fit(self, patterns: Sequence[ClozePattern], texts: Sequence[str], labels: Sequence[int]) -> Tuned:
        """Tune the prompt on labelled texts, with the best of some patterns. The model has the prompt after it.

        Raises: UsageError where the package cma is not installed, or there is nothing to learn from.
        """
        if not patterns or not texts or len(texts) != len(labels):
            raise UsageError("give a pattern or more, and texts with a label each")
        try:
            import cma
        except ImportError:
            raise UsageError(f"black-box tuning needs the package cma: {INSTALL}") from None
        before = [self._with_prompt(pattern) for pattern in patterns]
        self._set(np.zeros(self.projection.shape[1]))
        alone = [self._loss(pattern, texts, labels) for pattern in before]
        best = int(np.argmin(alone))

        def loss(z: np.ndarray) -> float:
            self._set(z)
            return self._loss(before[best], texts, labels)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # a seed of 0 is the clock's to the package
            options = {"maxfevals": self.evolution, "seed": self.seed + 1, "verbose": -9}
            strategy = cma.CMAEvolutionStrategy(np.zeros(self.projection.shape[1]), self.step, options)
            strategy.optimize(loss)
        found, evolved = self._better(strategy.result.xbest, strategy.result.fbest, alone[best])
        last = evolved
        if self.search:
            from scipy.optimize import minimize

            near: Any = minimize(
                loss, found, method="COBYLA", options={"maxiter": self.search, "rhobeg": self.step / 10}
            )
            if near.fun < last:
                found, last = near.x, float(near.fun)
        self._set(found)
        spent = Charge(flops=self._flops, read=self._read, calls=self._calls)
        return Tuned(before[best], (alone[best], evolved, last), spent)

    def _better(self, z: np.ndarray, value: float, alone: float) -> tuple[np.ndarray, float]:
        """What the evolution found, where it is better than no prompt of its own."""
        return (z, float(value)) if value < alone else (np.zeros_like(z), alone)

    def _with_prompt(self, pattern: ClozePattern) -> ClozePattern:
        return replace(pattern, asked=lambda text: [*self.prompt.ids, *pattern.asked(text)])

    @torch.no_grad()
    def _set(self, z: np.ndarray) -> None:
        moved = (self.projection @ torch.from_numpy(np.asarray(z)).float()).view(self.start.shape)
        self.prompt.prompt.copy_(self.start + moved.to(self.start.device))

    @torch.no_grad()
    def _loss(self, pattern: ClozePattern, texts: Sequence[str], labels: Sequence[int]) -> float:
        found, flops = scores(self.model, pattern, texts)
        self._calls, self._flops, self._read = self._calls + 1, self._flops + flops, self._read + found.numel()
        return float(torch.nn.functional.cross_entropy(found.cpu(), torch.tensor(list(labels))))


@torch.no_grad()
def automatic_words(
    model: LanguageModule,
    asked: Callable[[str], Sequence[int]],
    texts: Sequence[str],
    labels: Sequence[int],
    classes: int,
) -> list[list[int]]:
    """The token of each class that the model gives more to its texts than to those of any other: a verbaliser of no one's making.

    word_c = argmax_w ( mean_{x of c} log p(w | x) - max_{c' != c} mean_{x of c'} log p(w | x) )

    Words of the less likely half are left out.
    """
    said = []
    for text in texts:
        ids = torch.tensor([list(asked(text))], device=model.device)
        reading = model.read(Inputs(ids))
        said.append(reading.head.logits(reading.hidden[0, -1]).float().log_softmax(-1).cpu())
    whole, labelled = torch.stack(said), torch.tensor(list(labels))
    means: Tensor = torch.stack([whole[labelled == label].mean(0) for label in range(classes)])
    likely = whole.mean(0) >= whole.mean(0).median()
    found = list[list[int]]()
    for label in range(classes):
        others = torch.cat([means[:label], means[label + 1 :]]).amax(0)
        lead = torch.where(likely, means[label] - others, -torch.inf)
        lead[[word[0] for word in found]] = -torch.inf  # no word for two classes
        found.append([int(lead.argmax())])
    return found
