"""The best mixture, predicted from many small runs on random ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from shoestring.data.mixture import Domain, shares_of
from shoestring.errors import UsageError
from shoestring.jobs.job import Job
from shoestring.jobs.runner import Runner, in_order
from shoestring.method import Count, Positive, Whole, method

SCALES = (0.1, 5.0)
"""The concentrations that Dirichlet distributions are drawn with, from spread out to near the prior."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """What a regression learnt. model: has `predict`. search: whose mixtures it learnt from."""

    model: Any
    search: "RegMix"

    def predict(self, mixtures: np.ndarray) -> np.ndarray:
        """float64 [n]: the loss under mixtures [n, domains]."""
        return np.asarray(self.model.predict(np.asarray(mixtures, dtype=np.float64)), dtype=np.float64)

    def rank_correlation(self, mixtures: np.ndarray, losses: np.ndarray) -> float:
        """Spearman's correlation of predicted and true losses, of mixtures that it did not learn from."""
        import scipy.stats  # slow to load

        return float(scipy.stats.spearmanr(self.predict(mixtures), losses).statistic)

    def best(self) -> np.ndarray:
        """float64 [domains]: the mean of the simulated mixtures whose predicted losses are lowest."""
        simulated = self.search.mixtures(self.search.simulated, self.search.seed + 1)
        order = np.argsort(self.predict(simulated), kind="stable")
        found = simulated[order[: self.search.averaged]].mean(axis=0)
        return np.asarray(found / found.sum())


@method(
    "data",
    kind="mixture search",
    name="regmix",
    paper="RegMix: Data Mixture as Regression for Language Model Pre-training, arXiv:2407.01492",
    claim="512 proxies of 1M parameters find a mixture that is best among 64 models of 1B, and matches or surpasses DoReMi with a "
    "tenth of its compute",
    cost="the proxies, which dwarf the regression: seconds",
)
class RegMix:
    """Draw mixtures, train a small proxy on each, fit a regression from mixture to loss, and take the best of many simulated.

    search = RegMix(domains); m = search.mixtures(512); losses = [train(row) for row in m]; search.fit(m, losses).best()
    search.learn(512, runner, job).best()  # the same, with proxies that a runner of jobs trains

    Mixtures are drawn from Dirichlet(s n prior), n the number of domains, s log-uniform in [0.1, 5], prior the shares of tokens.
    `best` is the mean of the `averaged` lowest of `simulated` mixtures. The paper does likewise, with 100 of 10^5 or more.

    regressor: 'lightgbm' (trees, which may find interactions) or 'linear' (ridge regression on the weights).
    simulated: mixtures that the regression is asked about.
    averaged: of these, the lowest, whose mean is taken.
    rate: step of each tree, of as many as `trees`.
    trees: how many; more of them fit closer.
    penalty: of the linear regression, on its squared coefficients.
    seed: of what is drawn.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        regressor: Literal["lightgbm", "linear"] = "lightgbm",
        simulated: Count = 100_000,
        averaged: Count = 100,
        rate: Annotated[float, Interval(gt=0, le=1)] = 0.02,
        trees: Count = 500,
        penalty: Positive = 1e-3,
        seed: Whole = 0,
    ) -> None:
        self.domains, self.regressor, self.simulated, self.averaged = tuple(domains), regressor, simulated, averaged
        self.rate, self.trees, self.penalty, self.seed = rate, trees, penalty, seed
        self.prior = shares_of(self.domains, None)

    def mixtures(self, count: int, seed: int | None = None) -> np.ndarray:
        """float64 [count, domains]: random mixtures, the same for the same seed (None: that of the search)."""
        generator = np.random.default_rng(self.seed if seed is None else seed)
        low, high = np.log(SCALES)
        scales = np.exp(generator.uniform(low, high, (count, 1)))
        drawn = generator.standard_gamma(np.maximum(scales * self.prior * len(self.domains), 1e-3)) + 1e-12
        return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))

    def fit(self, mixtures: np.ndarray, losses: Sequence[float] | np.ndarray) -> Predictor:
        """Learn losses [n] of mixtures [n, domains]. Raises: UsageError where there are too few, or a package is missing."""
        given, goals = np.asarray(mixtures, dtype=np.float64), np.asarray(losses, dtype=np.float64)
        if len(given) < 3 or given.shape != (len(goals), len(self.domains)) or not np.isfinite(goals).all():
            raise UsageError("regmix: three mixtures at least, each with a weight for each domain and a finite loss")
        return Predictor(self._trees(given, goals) if self.regressor == "lightgbm" else self._line(given, goals), self)

    def learn(self, count: int, runner: Runner, job: Callable[[np.ndarray], Job]) -> Predictor:
        """Have a proxy trained on each of so many mixtures, and learn of them.

        runner: trains them, here or on other machines. job: of a mixture [domains]; its value is the loss.
        Raises: as `fit`, and as `in_order`.
        """
        drawn = self.mixtures(count)
        made = in_order(runner, [job(mixture) for mixture in drawn])
        return self.fit(drawn, [float(each.value) for each in made])

    def _trees(self, given: np.ndarray, goals: np.ndarray) -> Any:
        try:
            import lightgbm
        except ModuleNotFoundError as error:
            if error.name != "lightgbm":
                raise
            raise UsageError("regmix: this needs lightgbm: pip install 'shoestring[curation]'") from None
        data = lightgbm.Dataset(given, goals, params={"min_data_in_bin": 1, "verbosity": -1})
        options = {
            "objective": "regression",
            "learning_rate": self.rate,
            "num_leaves": 15,
            "min_data_in_leaf": max(1, len(goals) // 50),
            "seed": self.seed,
            "deterministic": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        return lightgbm.train(options, data, num_boost_round=self.trees)

    def _line(self, given: np.ndarray, goals: np.ndarray) -> Any:
        return _Line.of(given, goals, self.penalty)


@dataclass(frozen=True, eq=False)
class _Line:
    """y = x . slope + level."""

    slope: np.ndarray
    level: float

    @classmethod
    def of(cls, given: np.ndarray, goals: np.ndarray, penalty: float) -> "_Line":
        centre, level = given.mean(axis=0), goals.mean()
        moved = given - centre
        slope = np.linalg.solve(moved.T @ moved + penalty * np.eye(given.shape[1]), moved.T @ (goals - level))
        return cls(slope, float(level - centre @ slope))

    def predict(self, given: np.ndarray) -> np.ndarray:
        return np.asarray(given @ self.slope + self.level)
