"""Is choosing data worth what it takes? Curation, mixtures and selection against 'random, more epochs', at equal FLOPs or seconds.

The pool (`three_domains.py`) has three domains of unequal share; of each, half the text is clean, a quarter spoilt and a quarter
copies. All arms train the same small model on bytes, and are judged by the mean of the losses on clean held-out text of the three
domains. Every arm has the same budget in all: what scoring the pool, training a scorer, a reference or proxies, hearing losses and
choosing rows takes is taken off what is left to train with. 'random' trains on the whole pool, as many epochs as that allows.

--flops are counted: what hashing and linear scorers take is none worth counting. --seconds are of the processor, of one thread, in
place of FLOPs: there everything counts that an arm does, hashing included, but for libraries that are loaded before.

The options of the arms are those written here; nothing was tuned on the outcome. A seed draws the pool, the first weights and the
order. A verdict is drawn from three pairs or more, by Student's test of the paired differences, at 95 % without a correction for
there being many arms: of 20 arms that do nothing, one is expected to be shown.

Every run is a line of --out, and what is there is not run again.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from run_lines import RunLines
from three_domains import (
    HEARD,
    NAMES,
    Budget,
    Pool,
    Size,
    Trained,
    make_pool,
    measured,
    store_of,
    train,
    untimed_environment,
)

from shoestring import atomic
from shoestring.base.scorer import ModelScorer
from shoestring.compare.statistics import LEAST_PAIRS, paired
from shoestring.config import Choice
from shoestring.contract.model import LanguageModel
from shoestring.data.bpe import byte_tokenizer
from shoestring.data.config import TextOptions
from shoestring.data.corpus import open_corpus
from shoestring.data.curation.account import Account
from shoestring.data.curation.curate import curate
from shoestring.data.curation.documents import CorpusSource, open_documents
from shoestring.data.curation.meta_domains import MetaDomains
from shoestring.data.mixed import Mixed
from shoestring.data.mixture import Domain
from shoestring.data.mixture_searches.domain2vec import Domain2Vec
from shoestring.data.mixture_searches.regmix import RegMix
from shoestring.data.windows import Windows

CONFIDENCE = 0.95
SCORER = 0.1
"""The share of an arm's budget that training a model which scores, or a reference, may take."""
PROXIES, PROXY = 12, 0.02
"""Proxies of RegMix, and the share of the arm's budget that each has."""
RULES = {"least_words": 20, "stop_words": 0, "letters": 0.5, "symbols": 0.3}
"""Those of Gopher's limits that code would break are loosened."""


class World(NamedTuple):
    """What an arm is given."""

    pool: Pool
    size: Size
    budget: Budget
    seed: int
    folder: Path


class Outcome(NamedTuple):
    """trained: the model. before: FLOPs that went before it. kept: documents kept by kind, where some were dropped."""

    trained: Trained
    before: int = 0
    kept: dict[str, int] | None = None
    weights: dict[str, float] | None = None


ARMS: dict[str, Callable[[World], Outcome]] = {}


def arm(function: Callable[[World], Outcome]) -> Callable[[World], Outcome]:
    ARMS[function.__name__] = function
    return function


def windows(world: World, texts: Sequence[str]) -> Windows:
    return Windows(store_of(texts), world.size.context, world.seed)


@arm
def random(world: World) -> Outcome:
    """The whole pool."""
    return Outcome(train(windows(world, world.pool.texts), world.size, world.seed, world.budget, world.pool))


# ---- curation


def curated(world: World, steps: Sequence[tuple[str, dict[str, Any]]], scorers: dict[str, Any], before: int) -> Outcome:
    """Curate the pool, and train on what is kept with what is left of the budget."""
    path = world.folder / "pool.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in world.pool.texts))
    account = Account(open_scorer=scorers.__getitem__)
    documents = open_documents(CorpusSource(open_corpus(str(path), TextOptions()), ""), world.folder, account)
    found = curate(documents, [Choice.of("data", name, kind="curation", **options) for name, options in steps], account)
    before += account.spent.flops
    kept = [text for text, own in zip(world.pool.texts, found.kept, strict=True) if own]
    kinds = [kind for kind, own in zip(world.pool.kinds, found.kept, strict=True) if own]
    trained = train(windows(world, kept), world.size, world.seed, world.budget.after(before), world.pool)
    return Outcome(trained, before, {kind: kinds.count(kind) for kind in sorted(set(world.pool.kinds))})


def trusted_corpus(world: World) -> str:
    path = world.folder / "trusted.jsonl"
    texts = [text for own in world.pool.trusted.values() for text in own]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def reference(world: World, size: Size | None = None, texts: Sequence[str] | None = None) -> Trained:
    """A model trained on the trusted text, or on others, with the share `SCORER` of the budget."""
    own = [text for each in world.pool.trusted.values() for text in each] if texts is None else texts
    budget = world.budget.part(SCORER)
    return train(windows(world, own), size or world.size, world.seed + 1000, budget, world.pool, judge=False)


def scorer(trained: Trained) -> ModelScorer:
    digest = hashlib.sha256()
    for tensor in trained.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return ModelScorer(trained.model, byte_tokenizer(), digest.hexdigest())


@arm
def exact_duplicates(world: World) -> Outcome:
    return curated(world, [("exact_duplicates", {})], {}, 0)


@arm
def minhash(world: World) -> Outcome:
    return curated(world, [("minhash", {"threshold": 0.7})], {}, 0)


@arm
def quality_rules(world: World) -> Outcome:
    return curated(world, [("quality_rules", RULES)], {}, 0)


@arm
def cluster_filter(world: World) -> Outcome:
    """Nobody names clusters here: each of 16 keeps at most the mean number of documents."""
    most = max(1, len(world.pool.texts) // 16)
    return curated(world, [("cluster_filter", {"clusters": 16, "most": most, "dimensions": 16})], {}, 0)


@arm
def data_filtering_network(world: World) -> Outcome:
    return curated(world, [("data_filtering_network", {"trusted": trusted_corpus(world), "keep": 0.5})], {}, 0)


@arm
def perplexity_bands(world: World) -> Outcome:
    made = reference(world)
    return curated(world, [("perplexity_bands", {"model": "made"})], {"made": scorer(made)}, made.spent)


@arm
def difference_sampling(world: World) -> Outcome:
    """A teacher of trusted text, and a smaller model of the pool as it is."""
    small = Size(1, max(32, world.size.width // 2), world.size.context, world.size.rows, world.size.lr)
    teacher, plain = reference(world), reference(world, small, world.pool.texts)
    made = {"teacher": scorer(teacher), "plain": scorer(plain)}
    steps = [("difference_sampling", {"teacher": "teacher", "reference": "plain"})]
    return curated(world, steps, made, teacher.spent + plain.spent)


@arm
def dedup_then_filter(world: World) -> Outcome:
    """Near-duplicates first, then what is unlike the trusted text."""
    filtered = ("data_filtering_network", {"trusted": trusted_corpus(world), "keep": 0.6})
    return curated(world, [("minhash", {"threshold": 0.7}), filtered], {}, 0)


# ---- mixtures of the domains, nothing dropped


def of_domain(world: World, name: str) -> list[str]:
    return [text for text, domain in zip(world.pool.texts, world.pool.domains, strict=True) if domain == name]


def mixed(world: World, name: str, before: int = 0, size: Size | None = None, **options: Any) -> Outcome:
    size = size or world.size
    sources = [windows(world, of_domain(world, domain)) for domain in NAMES]
    domains = [Domain(domain, len(source.store)) for domain, source in zip(NAMES, sources, strict=True)]
    mixture = Choice.of("data", name, kind="mixture", **options).build(domains)
    stream = Mixed(NAMES, sources, mixture, world.seed)
    listens = name == "dynamic_loading"
    trained = train(stream, size, world.seed, world.budget.after(before), world.pool, listens=listens)
    last = dict(zip(NAMES, mixture.weights(1.0).tolist(), strict=True))
    return Outcome(trained, before, None, last)


EVEN = dict.fromkeys(NAMES, 1.0)


@arm
def mixture_even(world: World) -> Outcome:
    return mixed(world, "fixed", weights=EVEN)


@arm
def mixture_ramp(world: World) -> Outcome:
    return mixed(world, "ramp", end=EVEN)


@arm
def mixture_phases(world: World) -> Outcome:
    natural = {name: float(sum(map(len, of_domain(world, name)))) for name in NAMES}
    return mixed(world, "phases", until=(0.7,), weights=(natural, EVEN))


@arm
def mixture_dynamic_loading(world: World) -> Outcome:
    """The reference losses are those of a model of trusted text, on that text: it is charged."""
    made = reference(world)
    losses, took = measured(made.model, world.pool.trusted, world.size)
    return mixed(world, "dynamic_loading", made.spent + took.flops, reference=losses)


@arm
def mixture_regmix(world: World) -> Outcome:
    """The linear regression, as proxies are few. Of a linear function on a simplex the least is at a corner: one domain alone."""
    return regmix(world, "linear")


@arm
def mixture_regmix_trees(world: World) -> Outcome:
    """Regression by trees, as the paper has it. This arm was added when what the linear one came to had been seen."""
    return regmix(world, "lightgbm")


def regmix(world: World, regressor: str) -> Outcome:
    """Proxies of one layer of 32; the loss is that on the trusted text."""
    sizes = [sum(map(len, of_domain(world, name))) for name in NAMES]
    asked = [Domain(*each) for each in zip(NAMES, sizes, strict=True)]
    search: RegMix = Choice.of(
        "data", "regmix", kind="mixture search", regressor=regressor, simulated=10_000, seed=world.seed
    ).build(asked)
    small = Size(1, 32, world.size.context, world.size.rows, world.size.lr)
    sources = [store_of(of_domain(world, name)) for name in NAMES]
    drawn, losses, before = search.mixtures(PROXIES), [], 0
    for row in drawn:
        made = [Windows(source, small.context, world.seed) for source in sources]
        domains = [Domain(name, len(each.store)) for name, each in zip(NAMES, made, strict=True)]
        weights = dict(zip(NAMES, row.tolist(), strict=True))
        mixture = Choice.of("data", "fixed", kind="mixture", weights=weights).build(domains)
        proxy = train(
            Mixed(NAMES, made, mixture, world.seed),
            small,
            world.seed,
            world.budget.part(PROXY),
            world.pool,
            judge=False,
        )
        found, took = measured(proxy.model, world.pool.trusted, small)
        losses.append(float(np.mean(list(found.values()))))
        before += proxy.spent + took.flops
    best = search.fit(drawn, losses).best()
    return mixed(world, "fixed", before, weights=dict(zip(NAMES, best.tolist(), strict=True)))


@arm
def mixture_domain2vec(world: World) -> Outcome:
    """Kinds of text found in the pool; the target is the trusted text, of each domain as much."""
    kinds = MetaDomains.found(world.pool.texts, 12, 16, world.seed)
    vectors = np.stack([kinds.vector(of_domain(world, name)) for name in NAMES])
    target = np.mean([kinds.vector(world.pool.trusted[name]) for name in NAMES], axis=0)
    weights = Domain2Vec()(vectors, target)
    return mixed(world, "fixed", weights=dict(zip(NAMES, weights.tolist(), strict=True)))


# ---- rows chosen in each step


def selected(world: World, name: str, made: Trained | None = None, **options: Any) -> Outcome:
    def opened(place: str) -> LanguageModel:
        assert made is not None
        return made.model

    selection = Choice.of("data", name, kind="selection", **options).build(opened)
    before = 0 if made is None else made.spent
    source = windows(world, world.pool.texts)
    trained = train(source, world.size, world.seed, world.budget.after(before), world.pool, selection=selection)
    return Outcome(trained, before)


@arm
def select_hard_batches(world: World) -> Outcome:
    return selected(world, "hard_batches", delta=2)


@arm
def select_jest(world: World) -> Outcome:
    return selected(world, "jest", reference(world), reference="made", more=2, chunks=4)


@arm
def select_bmdal(world: World) -> Outcome:
    return selected(world, "bmdal", more=2, width=64)


@arm
def select_colm(world: World) -> Outcome:
    return selected(world, "colm", more=2)


# ---- runs and verdicts


def line_of(name: str, seed: int, options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    pool = make_pool(options.pool, options.heldout, options.trusted, seed)
    size = Size(options.layers, options.width, options.context, options.rows, options.lr)
    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(options.flops) if options.seconds is None else Budget(options.seconds, "seconds")
        found = ARMS[name](World(pool, size, budget, seed, Path(folder)))
    trained = found.trained
    return {
        "arm": name,
        "seed": seed,
        "loss": trained.loss,
        "losses": dict(trained.losses),
        "used": trained.used + (found.before if budget.unit == "flops" else 0),
        "before": found.before if budget.unit == "flops" else trained.before,
        "choosing": trained.chosen,
        "tokens": trained.tokens,
        "kept": found.kept,
        "weights": found.weights,
        "settings": settings,
    }


def verdicts(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm against 'random', paired by seed."""
    base = {line["seed"]: line["loss"] for line in lines if line["arm"] == "random"}
    found = []
    for name in [name for name in ARMS if name != "random"]:
        own = {line["seed"]: line for line in lines if line["arm"] == name and line["seed"] in base}
        if not own:
            continue
        test = paired([line["loss"] - base[seed] for seed, line in own.items()], CONFIDENCE, max(base.values()))
        shown = "better" if (test.difference or 0) < 0 else "worse"
        verdict = shown if test.shown else "no difference shown"
        found.append(
            {
                "arm": name,
                "pairs": test.pairs,
                "difference": test.difference,
                "interval": test.interval,
                "minimum_detectable_effect": test.minimum_detectable_effect,
                "share_not_trained": float(
                    np.mean([(line["before"] + line["choosing"]) / line["used"] for line in own.values()])
                ),
                "verdict": verdict if test.pairs >= LEAST_PAIRS else f"none: {test.pairs} of {LEAST_PAIRS} pairs",
            }
        )
    return found


def jobs(options: argparse.Namespace, lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """What is not made yet: all arms of one seed before the next."""
    made = {(line["arm"], line["seed"]) for line in lines}
    for seed in options.seeds:
        for name in options.arms:
            if (name, seed) not in made:
                yield name, seed


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=3.5e11, help="of each arm in all (default 3.5e11)")
    parser.add_argument("--seconds", type=float, help="of each arm in all, of one thread, in place of FLOPs")
    parser.add_argument("--pool", type=int, default=100_000, help="characters (default 100,000)")
    parser.add_argument("--heldout", type=int, default=12_000, help="characters of each domain (default 12,000)")
    parser.add_argument("--trusted", type=int, default=5000, help="characters of each domain (default 5,000)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="of a batch (default 16)")
    parser.add_argument("--lr", type=float, default=4e-3, help="one for all arms (default 0.004)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/data-selection.jsonl"), help="a line for each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write runs and verdicts there")
    parser.add_argument("--smallest", action="store_true", help="a run of seconds that shows that everything works")
    options = parser.parse_args(words)
    tiny = {
        "flops": 4e9,
        "pool": 10_000,
        "heldout": 600,
        "trusted": 600,
        "layers": 1,
        "width": 32,
        "context": 16,
        "rows": 4,
    }
    if options.smallest:
        vars(options).update(tiny, seeds=[0])
    if options.seconds is not None:
        torch.set_num_threads(1)
        options.flops = None
    keys = ("flops", "seconds", "pool", "heldout", "trusted", "layers", "width", "context", "rows", "lr")
    settings: dict[str, Any] = {key: getattr(options, key) for key in keys}
    settings.update(python=sys.version.split()[0], scorer=SCORER, proxies=[PROXIES, PROXY], heard=HEARD)
    runs = RunLines(options.out, settings)
    warmed = set[str]()
    for name, seed in jobs(options, runs.lines):
        if options.seconds is not None and name not in warmed:  # libraries are loaded by a run that does not count
            line_of(name, seed, argparse.Namespace(**{**vars(options), **tiny, "seconds": None}), {})
            warmed.add(name)
        line = line_of(name, seed, options, settings)
        runs.add(line)
        print(f"seed {seed}  {name:24} loss {line['loss']:.4f}  {line['tokens']:,} tokens", flush=True)
    found = verdicts(runs.lines)
    for one in found:
        gap = "" if one["interval"] is None else f" [{one['interval'][0]:+.4f}, {one['interval'][1]:+.4f}]"
        print(f"{one['arm']:24} {one['difference']:+.4f}{gap}  {one['share_not_trained']:5.1%}  {one['verdict']}")
    if options.json:
        runs_alone = [{key: value for key, value in line.items() if key != "settings"} for line in runs.lines]
        content = {"settings": settings, "verdicts": found, "runs": runs_alone, "environment": untimed_environment()}
        atomic.write_text(options.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
