"""A small model on a mixture of three domains, as a job: `mixture_ranking.py` has many of them, here or on other machines."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from three_domains import NAMES, Budget, Pool, Size, make_pool, measured, store_of, train

from shoestring.config import Choice
from shoestring.data.mixed import Mixed
from shoestring.data.mixture import Domain
from shoestring.data.store import TokenStore
from shoestring.data.windows import Windows
from shoestring.errors import UsageError


@functools.cache
def text(size: int, heldout: int, trusted: int, seed: int) -> tuple[Pool, dict[str, TokenStore]]:
    """The pool of `three_domains.make_pool`, and the tokens of each domain."""
    pool = make_pool(size, heldout, trusted, seed)
    by_domain = {
        name: [one for one, own in zip(pool.texts, pool.domains, strict=True) if own == name] for name in NAMES
    }
    return pool, {name: store_of(texts) for name, texts in by_domain.items()}


def domains(stores: dict[str, TokenStore]) -> list[Domain]:
    return [Domain(name, len(store)) for name, store in stores.items()]


def digest(pool: Pool) -> str:
    """16 hex digits of all its text: it is that of the Python library, which differs from version to version."""
    whole = json.dumps([pool.texts, pool.domains, pool.heldout, pool.trusted])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def proxy(asked: Any, folder: Path | None) -> dict[str, Any]:
    """The `Work` of a proxy.

    asked: 'weights' of the domains, 'layers', 'width', 'context', 'rows', 'lr', 'flops', 'seed'; 'pool', the arguments of `text`;
    'digest' of that pool.
    Returns 'trusted' and 'heldout' loss, and the FLOPs of training and of the look at the trusted text.
    Raises: UsageError where the pool is another here.
    """
    pool, stores = text(*asked["pool"])
    if digest(pool) != asked["digest"]:
        raise UsageError("the library of Python has other text here: have the same version on all machines")
    size = Size(asked["layers"], asked["width"], asked["context"], asked["rows"], asked["lr"])
    sources = [Windows(store, asked["context"], asked["seed"]) for store in stores.values()]
    shares = dict(zip(NAMES, asked["weights"], strict=True))
    mixture = Choice.of("data", "fixed", kind="mixture", weights=shares).build(domains(stores))
    budget = Budget(asked["flops"])
    made = train(Mixed(NAMES, sources, mixture, asked["seed"]), size, asked["seed"], budget, pool)
    trusted, took = measured(made.model, pool.trusted, size)
    loss = float(np.mean(list(trusted.values())))
    return {"trusted": loss, "heldout": made.loss, "flops": made.spent + took.flops}
