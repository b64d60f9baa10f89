"""What tests of caches share: models, texts, and policies and stores with small settings."""

from collections.abc import Callable
from typing import Any

from shoestring.config import Choice
from shoestring.contract.model import LanguageModel
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.cache_policy import CachePolicy
from shoestring.decode.cache_store import CacheStore
from shoestring.decode.eviction import Limit
from shoestring.decode.store import PagedStore
from shoestring.decode.text_cache import TextStore
from shoestring.method import methods
from tests.decode.masked_reference import SLOW
from tests.decode.random_models import VOCABULARY, native, wrapped

GREEDY = Sampling(temperature=0)
MODELS: dict[str, Callable[[], LanguageModel]] = {
    "native": native,
    "gpt2": lambda: wrapped("gpt2"),
    "windows": lambda: wrapped("mistral", sliding_window=12),
}
POLICIES = [card.name for card in methods("decode", "cache policy")]
EVERY = [card.name for card in methods("decode", "cache store")]
WHOLE = [name for name in EVERY if isinstance(Choice.of("decode", name, kind="cache store").build(), TextStore)]
STORES = [name for name in EVERY if name not in WHOLE]
TEXT_STORES = [name for name in WHOLE if name not in ("lazyllm", "length_adaptive")]
"""But for those of native models, which are in files of their own."""
TEXTS = [
    tuple((3 * place * place + 5 * number) % VOCABULARY for place in range(21 + 4 * number)) for number in range(3)
]
MOST, STRIDE, COUNT = 16, 4, 12


def policy(name: str) -> CachePolicy:
    options = SLOW[name][0] if name in SLOW else {}
    made: CachePolicy = Choice.of("decode", name, kind="cache policy", **options).build()
    return made


def held_store(name: str) -> CacheStore:
    made: CacheStore = Choice.of("decode", name, kind="cache store").build()
    return made


def paged(
    model: LanguageModel, name: str, blocks: int = 40, whole: bool = False, store: str = "plain", most: int = MOST
) -> PagedStore:
    limit = Limit(most, STRIDE, whole)
    return PagedStore(model, blocks, 4, policy=policy(name), limit=lambda row: limit, store=held_store(store))


def written(engine: Engine, texts: list[tuple[int, ...]] = TEXTS, count: int = COUNT, **more: Any) -> list[list[int]]:
    numbers = [engine.submit(Request(text, GREEDY, count, **more)) for text in texts]
    found = {(each.number, each.sample): list(each.tokens) for each in engine.run()}
    return [found[number, sample] for number in numbers for sample in range(more.get("samples", 1))]


def places(store: PagedStore, number: int) -> list[list[list[int]]]:
    """Of each layer and head, the tokens that a row holds."""
    slots = store.cache._slots(number, store.cache.held[number])
    return [layer.positions[slots].T.tolist() for layer in store.cache.layers]
