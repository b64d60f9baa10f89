"""How much memory a cache may take, what stays in it, and how it is held: from settings to an engine's store."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch

from shoestring.budget.units import parse_memory
from shoestring.config import Choice, Pick
from shoestring.contract.cache import KeptShape
from shoestring.contract.model import LanguageModel
from shoestring.decode.cache_policy import CachePolicy
from shoestring.decode.cache_store import CacheStore, place_bytes
from shoestring.decode.cache_stores.plain import PlainStore
from shoestring.decode.eviction import Limit
from shoestring.decode.request import Request
from shoestring.decode.row import Row
from shoestring.decode.sampling import Sampling
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.store import BLOCK, PagedStore, Store, shapes_of, store_for
from shoestring.decode.text_cache import TextStore
from shoestring.decode.work import RowWork
from shoestring.errors import UsageError
from shoestring.method import Whole

POLICY = Pick("decode", "cache policy")
STORE = Pick("decode", "cache store", default="plain")

GREEDY = Sampling(temperature=0)

STRIDE = 128
"""Places that are given up at a time, at most, where nothing is said; and no more than a quarter of what a row may have."""


@dataclass(frozen=True)
class CacheConfig:
    """The cache of an engine.

    budget: of all rows together, as 64MiB; or the share of its tokens that each row may keep, as 25%; empty: no limit of its own.
    policy: which tokens stay where not all can; left out: all stay, and rows wait, or end, where there is no room.
    store: how keys and values are held.
    stride: places that a row gives up at a time, once it has all that it may have; 0: 128, or a quarter of what it may have.
    whole: prompts are read whole and then cut, as many methods were published. Memory then grows with the prompt.
    """

    budget: str = ""
    policy: Annotated[Choice, POLICY] | None = None
    store: Annotated[Choice, STORE] = field(default_factory=STORE.choice)
    stride: Whole = 0
    whole: bool = False

    def __post_init__(self) -> None:
        if self.budget:
            amount_of(self.budget)
        if self.policy is not None and not self.budget:
            raise ValueError(f"the policy '{self.policy.name}' keeps to a budget: set budget, to 64MiB or 25% say")
        if self.policy is None and (self.stride or self.whole):
            raise ValueError("stride and whole say when a policy evicts: set policy, to keydiff say")


def amount_of(budget: str) -> tuple[float | None, float]:
    """(the share, infinity) or (None, bytes) of a budget. Raises: UsageError."""
    text = budget.strip()
    if not text.endswith("%"):
        return None, parse_memory(text)
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(f"'{budget}' is no share of the cache: write it like 25%, above 0% and up to 100%")
    return share, math.inf


def limit_of(most: int, stride: int, whole: bool, block: int) -> Limit:
    """How much of a row stays that may have `most` places. stride: 0 for the usual one. Raises: UsageError."""
    usual = min(STRIDE, most // 4)
    usual = usual // block * block or usual  # what is given up should free whole blocks
    if stride >= most:
        raise UsageError(f"a stride of {stride} leaves nothing of the {most} places of a row: set a smaller one")
    return Limit(most, stride or max(1, usual), whole)


def store_within(model: LanguageModel, config: CacheConfig, *, rows: int, room: int, block: int = BLOCK) -> Store:
    """The store of an engine whose cache is so configured.

    rows: that have a place at a time, at most. room: tokens that they have, all together. block: tokens of a block.
    Raises: UsageError where the budget is too small, with the least that would do; and for models whose caches are of another kind.
    """
    if not config.budget and config.store.name == "plain":
        return store_for(model, room, block=block, rows=rows)
    try:
        kept = shapes_of(model)
    except UsageError:
        kept = None
    if kept is None:
        raise UsageError(
            "a layer of this model keeps something other than keys and values: its cache takes no settings"
        )
    shapes, like = kept
    made = config.store.build()
    if isinstance(made, TextStore):
        if config.policy is not None:
            raise UsageError(f"the store '{config.store.name}' holds all tokens of a text: leave the policy out")
        part, most = amount_of(config.budget) if config.budget else (None, math.inf)
        each = sum(place_bytes(PlainStore(), shapes, like))  # the most that a token can take
        return SeparateStore(model, int(min(room * (part or 1.0), most / each)), rows, store=made)
    store: CacheStore = made
    policy: CachePolicy | None = None if config.policy is None else config.policy.build()
    each = sum(place_bytes(store, shapes, like)) + _noted_bytes(policy, shapes)
    blocks = -(-room // block) + rows
    given, allowed = amount_of(config.budget) if config.budget else (None, math.inf)
    share = 1.0 if given is None else given
    limit: Callable[[Row], Limit] | None = None
    if policy is None:
        if share < 1:
            blocks = math.ceil(room * share / block) + rows
        if allowed < block * each:
            raise UsageError(
                f"a cache of {config.budget} holds not even {block} tokens: they take {_bytes(block * each)}"
            )
        return PagedStore(model, int(min(blocks, allowed // (block * each))), block, store=store)
    if allowed < math.inf:
        beside = _row_bytes(model, policy, shapes, block)
        own = int((allowed / rows - beside) // (block * each))
        if own < 2:
            least = math.ceil(rows * (beside + 2 * block * each))
            raise UsageError(
                f"a cache of {config.budget} is too small for {rows} rows at a time: {_bytes(least)} would do, or fewer rows"
            )
        fixed = limit_of(own * block, config.stride, config.whole, block)
        limit, blocks = (lambda row: fixed), min(blocks, own * rows)
    else:

        def limit(row: Row) -> Limit:
            tokens = len(row.request.prompt) + row.request.max_new_tokens
            places = max(2, math.ceil(min(tokens, model.about.context) * share / block - 1e-9)) * block
            return limit_of(places, config.stride, config.whole, block)

        most = math.ceil(room * share / block) + 2 * rows
        if config.whole:  # one prompt at a time may be there whole
            most += -(-min(model.about.context, room) // block)
        blocks = min(blocks + rows, most)
    context = model.about.context
    top = limit(Row(0, 0, Request((0,) * context, GREEDY, 1), 0, [], 0.0)).most  # no row takes more
    longest = context if top <= blocks * block and not config.whole else None
    return PagedStore(model, blocks, block, store=store, policy=policy, limit=limit, longest=longest)


def _noted_bytes(policy: CachePolicy | None, shapes: list[KeptShape]) -> int:
    """Bytes of what is noted beside the keys and values of a place: its position, and figures of the policy."""
    return 0 if policy is None else sum(4 * shape.heads * (1 + policy.figures) for shape in shapes)


def _row_bytes(model: LanguageModel, policy: CachePolicy, shapes: list[KeptShape], block: int) -> int:
    """Bytes of the queries that a policy wants to see of a row. The model is asked, by a pass over one token."""
    if not policy.window:
        return 0
    store = PagedStore(model, 2, block, policy=policy, limit=lambda row: Limit(2 * block, 1))
    row = Row(0, 0, Request((0,), GREEDY, 1), 0, [0], 0.0)
    store.admit(row)
    store.extend(row, 1)
    with torch.inference_mode():
        store.read(model, [RowWork(row, [0], outputs=False)])
    assert store.eviction is not None
    queries = [one.queries for one in store.eviction.noted[0]]
    return sum(policy.window * one.nbytes for one in queries if one is not None)


def _bytes(amount: float) -> str:
    return f"{math.ceil(amount / 2**20)}MiB" if amount >= 2**20 else f"{math.ceil(amount / 2**10)}KiB"
