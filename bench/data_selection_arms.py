"""The arms of `data_selection.py`: what each does with a pool, a budget and a seed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from three_domains import (
    NAMES,
    Budget,
    Pool,
    Size,
    Trained,
    measured,
    store_of,
    train,
)

from shoestring.base.scorer import ModelScorer
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
