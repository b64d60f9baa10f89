"""Do small proxies rank mixtures as larger models do? RegMix, proxies of the mixtures themselves, and successive halving.

The text is that of `three_domains.py`. The truth: a larger model trained on each of --candidates random mixtures for --flops each,
and its mean loss on clean held-out text of the three domains. Three ways to foretell its ranking, with the same bill, that of
--proxies small models of --proxy-flops each:

regmix      proxies on other mixtures; a regression, once linear and once of trees, foretells the candidates
proxies     proxies on the candidates themselves, the bill shared evenly; their own loss on the trusted text ranks them
halving     as 'proxies', but after each round the worse half is given up, and the others have twice the FLOPs

Proxies are judged on the trusted text, not on what the truth is measured on; their evaluations are on the bill. A mixture that was
given up stands behind all that went on. For each way: Spearman's correlation with the truth, its interval by a bootstrap over
candidates (it holds for these domains and this seed), how much worse the mixture that it puts first is than the best, in nats,
and the bill as a share of what the truth cost. Proxies and the truth have one seed of weights each. What halving trains in a
round is trained anew, as a run whose schedule ends earlier cannot go on: that is on its bill too.

Every run is a line of --out, and what is there is not run again. --on ray:ADDRESS has the machines of a Ray cluster train them;
this folder must be on their PYTHONPATH.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import mixture_proxy
import numpy as np
from run_lines import RunLines
from scipy.stats import spearmanr
from three_domains import untimed_environment

from shoestring import atomic
from shoestring.data.mixture_searches.regmix import RegMix
from shoestring.errors import ShoestringError
from shoestring.jobs.job import Job
from shoestring.jobs.runner import LOCAL, Here, Runner, elsewhere

RESAMPLES = 2000
CONFIDENCE = 0.95


class Trainer:
    """Trains on mixtures, as jobs that `runner` makes; each run is kept as a line, by what it is of."""

    def __init__(self, runner: Runner, runs: RunLines, settings: dict[str, Any]) -> None:
        self.runner, self.runs, self.settings = runner, runs, settings
        self.pool = tuple(settings[name] for name in ("pool", "heldout", "trusted", "seed"))
        pool, stores = mixture_proxy.text(*self.pool)
        self.digest, self.domains = mixture_proxy.digest(pool), mixture_proxy.domains(stores)

    def run(self, mixtures: np.ndarray, layers: int, width: int, flops: float, seed: int) -> list[dict[str, Any]]:
        """A line for each mixture, in their order: what it is of, and what `mixture_proxy.proxy` returns."""
        keys = [
            {"weights": weights.tolist(), "layers": layers, "width": width, "asked": flops, "seed": seed}
            for weights in mixtures
        ]
        left = {json.dumps(key): key for key in keys if self._found(key) is None}
        with closing(self.runner.map([self._job(name, key) for name, key in left.items()])) as made:
            for each in made:
                if each.value is None:
                    raise SystemExit(f"{each.job.name} ended with status {each.status}: {each.said}")
                self.runs.add({**left[each.job.name], **each.value, "settings": self.settings})
        lines = [self._found(key) for key in keys]
        return [line for line in lines if line is not None]

    def _found(self, key: dict[str, Any]) -> dict[str, Any] | None:
        lines = (line for line in self.runs.lines if all(line[name] == value for name, value in key.items()))
        return next(lines, None)

    def _job(self, name: str, key: dict[str, Any]) -> Job:
        shape = {one: self.settings[one] for one in ("context", "rows", "lr")}
        asked = {**key, **shape, "flops": key["asked"], "pool": self.pool, "digest": self.digest}
        return Job(name, f"{mixture_proxy.__name__}:proxy", asked)


def halving(trainer: Trainer, mixtures: np.ndarray, bill: float, layers: int, width: int, seed: int) -> Any:
    """([n] a rank for each mixture, 0 the best; the FLOPs it took)."""
    rounds = max(1, int(np.log2(len(mixtures))))
    alive, ranks, spent = list(range(len(mixtures))), np.zeros(len(mixtures)), 0
    for number in range(rounds):
        each = bill / rounds / len(alive)
        lines = trainer.run(mixtures[alive], layers, width, each, seed)
        spent += sum(line["flops"] for line in lines)
        order = [alive[place] for place in np.argsort([line["trusted"] for line in lines], kind="stable")]
        ranks[order] = np.arange(len(order))  # of those given up, as they stood then
        if number < rounds - 1:
            alive = order[: max(1, len(order) // 2)]
    return ranks, spent


def judged(foretold: np.ndarray, truth: np.ndarray, spent: float, whole: float) -> dict[str, Any]:
    """foretold: [n], lower is better. spent, whole: FLOPs of foretelling, and of the truth."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        rows = generator.integers(0, len(truth), len(truth))
        if np.ptp(truth[rows]) > 0 and np.ptp(foretold[rows]) > 0:
            drawn.append(float(spearmanr(foretold[rows], truth[rows]).statistic))
    tail = (1 - CONFIDENCE) / 2
    constant = np.ptp(foretold) == 0
    return {
        "rank_correlation": None if constant else float(spearmanr(foretold, truth).statistic),
        "interval": np.quantile(drawn, [tail, 1 - tail]).tolist() if drawn else None,
        "regret": float(truth[int(np.argmin(foretold))] - truth.min()),
        "flops": spent,
        "bill": spent / whole,
    }


def measure(options: argparse.Namespace, trainer: Trainer) -> dict[str, Any]:
    search = RegMix(trainer.domains, regressor="linear", simulated=10_000, seed=options.seed)
    trees = RegMix(trainer.domains, regressor="lightgbm", simulated=10_000, seed=options.seed)
    candidates = search.mixtures(options.candidates, options.seed + 100)
    small = options.proxy_layers, options.proxy_width
    bill = options.proxies * options.proxy_flops
    drawn = search.mixtures(options.proxies)
    proxies = trainer.run(drawn, *small, options.proxy_flops, options.seed)
    spent = sum(line["flops"] for line in proxies)
    losses = [line["trusted"] for line in proxies]
    own = trainer.run(candidates, *small, bill / len(candidates), options.seed)
    ranks, halved = halving(trainer, candidates, bill, *small, options.seed)
    larger = trainer.run(candidates, options.layers, options.width, options.flops, options.seed)
    truth, whole = np.array([line["heldout"] for line in larger]), sum(line["flops"] for line in larger)
    found = {
        "regmix, linear": judged(search.fit(drawn, losses).predict(candidates), truth, spent, whole),
        "regmix, trees": judged(trees.fit(drawn, losses).predict(candidates), truth, spent, whole),
        "proxies": judged(
            np.array([line["trusted"] for line in own]), truth, sum(line["flops"] for line in own), whole
        ),
        "halving": judged(ranks, truth, halved, whole),
    }
    return {"ways": found, "truth": {"mixtures": candidates.tolist(), "losses": truth.tolist(), "flops": whole}}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", type=int, default=64, help="of RegMix; what they cost is the bill (default 64)")
    parser.add_argument("--candidates", type=int, default=16, help="mixtures that are ranked (default 16)")
    parser.add_argument("--proxy-flops", type=float, default=5e9, help="of each proxy (default 5e9)")
    parser.add_argument("--proxy-layers", type=int, default=1)
    parser.add_argument("--proxy-width", type=int, default=32)
    parser.add_argument("--flops", type=float, default=3.5e11, help="of each larger model (default 3.5e11)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--pool", type=int, default=100_000, help="characters (default 100,000)")
    parser.add_argument("--heldout", type=int, default=12_000, help="characters of each domain")
    parser.add_argument("--trusted", type=int, default=5000, help="characters of each domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/mixture-ranking.jsonl"), help="a line for each run")
    parser.add_argument("--on", default=LOCAL, help="where models are trained: local (default), ray or ray:ADDRESS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--smallest", action="store_true", help="a run of seconds that shows that everything works")
    options = parser.parse_args(words)
    if options.smallest:
        tiny = {
            "proxies": 4,
            "candidates": 4,
            "proxy_flops": 1e8,
            "flops": 2e8,
            "layers": 1,
            "width": 32,
            "context": 16,
        }
        vars(options).update(tiny, rows=4, pool=10_000, heldout=600, trusted=600)
    settings: dict[str, Any] = {
        key: value for key, value in vars(options).items() if key not in ("out", "json", "smallest", "on")
    }
    settings["python"] = sys.version.split()[0]
    runs = RunLines(options.out, settings)
    with ExitStack() as stack:
        runner: Runner = Here()
        if options.on != LOCAL:
            others = stack.enter_context(elsewhere(options.on))
            others.machines()  # all of one version, or refused
            runner = others
        found = measure(options, Trainer(runner, runs, settings))
    for name, one in found["ways"].items():
        low, high = one["interval"] or (float("nan"),) * 2
        correlation = float("nan") if one["rank_correlation"] is None else one["rank_correlation"]
        print(
            f"{name:16} correlation {correlation:+.2f} [{low:+.2f}, {high:+.2f}]  its first is {one['regret']:.4f} nats "
            f"behind the best  bill {one['bill']:.1%} of the truth's"
        )
    if options.json:
        content = {"settings": settings, **found, "environment": untimed_environment()}
        atomic.write_text(options.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except ShoestringError as error:
        raise SystemExit(str(error)) from None
