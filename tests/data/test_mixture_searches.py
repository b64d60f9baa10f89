"""Searches for a mixture: what is planted is found, what is predicted ranks as the truth does, and the optimum is the optimum."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from shoestring.config import Choice
from shoestring.data.mixture import Domain
from shoestring.data.mixture_searches.domain2vec import Domain2Vec
from shoestring.data.mixture_searches.regmix import RegMix
from shoestring.errors import UsageError
from shoestring.jobs.job import Job
from shoestring.jobs.runner import Here
from tests.jobs.losing import Losing

DOMAINS = [Domain("a", 500), Domain("b", 300), Domain("c", 200)]
BEST = np.array([0.2, 0.5, 0.3])


def bowl(mixtures: np.ndarray) -> np.ndarray:
    """Losses that are lowest at `BEST`."""
    return np.asarray(2 + ((mixtures - BEST) ** 2).sum(axis=-1))


def slope(mixtures: np.ndarray) -> np.ndarray:
    return np.asarray(mixtures @ np.array([3.0, 2.0, 2.5]))


def test_mixtures_are_drawn_around_the_prior_the_same_each_time() -> None:
    search = RegMix(DOMAINS)
    drawn = search.mixtures(4000)
    assert drawn.sum(axis=1) == pytest.approx(np.ones(4000))
    assert (drawn >= 0).all()
    assert drawn.mean(axis=0) == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert drawn.max(axis=0) == pytest.approx(np.ones(3), abs=0.01)  # corners are among them
    assert np.array_equal(drawn, RegMix(DOMAINS).mixtures(4000))
    assert not np.array_equal(drawn[:9], RegMix(DOMAINS, seed=1).mixtures(9))


def test_trees_find_a_planted_optimum_and_rank_what_they_have_not_seen() -> None:
    search = RegMix(DOMAINS, simulated=5000, averaged=50)
    seen, unseen = search.mixtures(300), search.mixtures(64, seed=9)
    found = search.fit(seen, bowl(seen) + np.random.default_rng(0).normal(0, 0.002, 300))
    assert found.rank_correlation(unseen, bowl(unseen)) > 0.97
    assert np.abs(found.best() - BEST).max() < 0.06
    assert np.array_equal(
        found.best(), search.fit(seen, bowl(seen) + np.random.default_rng(0).normal(0, 0.002, 300)).best()
    )


def test_a_line_is_ridge_regression_by_the_normal_equations() -> None:
    search = RegMix(DOMAINS, regressor="linear", penalty=0.1, simulated=500, averaged=1)
    seen = search.mixtures(40)
    found = search.fit(seen, slope(seen))
    design = np.concatenate([seen, np.ones((40, 1))], axis=1)
    expected = np.linalg.solve(design.T @ design + np.diag([0.1, 0.1, 0.1, 0]), design.T @ slope(seen))
    assert found.predict(seen) == pytest.approx(design @ expected)
    simulated = search.mixtures(500, search.seed + 1)
    assert found.best() == pytest.approx(simulated[found.predict(simulated).argmin()])


def test_proxies_that_a_runner_trains_are_learnt_from_in_the_order_drawn(tmp_path: Path) -> None:
    search = RegMix(DOMAINS, regressor="linear", penalty=1e-9)

    def job(mixture: np.ndarray) -> Job:
        return Job(f"proxy {mixture}", "tests.jobs.works:mixture_loss", {"weights": mixture.tolist()})

    unseen = search.mixtures(5, seed=3)
    for runner in (Here(), Losing(tmp_path, {job(search.mixtures(16)[2]).name: 2})):  # the second gives the last first
        assert search.learn(16, runner, job).predict(unseen) == pytest.approx(unseen @ np.array([3.0, 2.0, 1.0]))


@pytest.mark.parametrize("losses", [[1.0, 2.0], [1.0, float("nan"), 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_too_little_to_learn_from_is_refused(losses: list[float]) -> None:
    search = RegMix(DOMAINS)
    with pytest.raises(UsageError, match="three mixtures at least"):
        search.fit(search.mixtures(3), losses)


def test_the_nearest_mixture_is_that_of_a_fine_grid() -> None:
    generator = np.random.default_rng(1)
    for target in (generator.dirichlet(np.ones(5)), generator.dirichlet(np.ones(5) * 0.1)):
        vectors = generator.dirichlet(np.ones(5), 3)
        found = Domain2Vec()(vectors, target)
        grid = [np.array([a, b, 100 - a - b]) / 100 for a, b in product(range(101), range(101)) if a + b <= 100]
        distances = [float(((vectors.T @ each - target) ** 2).sum()) for each in grid]
        assert ((vectors.T @ found - target) ** 2).sum() <= min(distances) + 1e-9
        assert np.abs(found - grid[int(np.argmin(distances))]).max() < 0.02
        assert found.sum() == pytest.approx(1)


def test_a_mixture_that_was_made_is_found_again_and_a_penalty_spreads_it() -> None:
    vectors = np.array([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]])
    weights = np.array([0.6, 0.1, 0.3])
    assert Domain2Vec()(vectors, weights @ vectors) == pytest.approx(weights, abs=1e-5)
    assert np.ptp(Domain2Vec(penalty=100.0)(vectors, weights @ vectors)) < 0.01
    with pytest.raises(UsageError, match="of the same kinds"):
        Domain2Vec()(vectors, np.ones(2))


@pytest.mark.parametrize("name", ["regmix", "domain2vec"])
def test_options_are_checked(name: str) -> None:
    with pytest.raises(UsageError):
        Choice.of("data", name, kind="mixture search", no_such_option=1)
