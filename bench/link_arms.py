"""The arms of slow_link.py: what each trains, and what the model says of it."""

import math
from dataclasses import dataclass
from pathlib import Path

from link_model import (
    Exchange,
    Link,
    Predicted,
    all_reduce_bytes,
    all_reduce_seconds,
    beside_backward,
    data_parallel,
    outer_loop,
)
from link_model import parameters as count_parameters

from shoestring.config import Tree, build, merge, read_toml
from shoestring.model.transformer import Transformer
from shoestring.sync.diloco import DiLoCo
from shoestring.train.config import RunConfig

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "sync"
WORKERS = 4


@dataclass(frozen=True)
class Way:
    """A way to train together. recipe: in recipes/sync, laid over its synchronous.toml. name: in tables."""

    name: str
    recipe: str

    @property
    def ddp(self) -> bool:
        return self.recipe == "synchronous"


WAYS = {
    "ddp": Way("DDP", "synchronous"),
    "diloco": Way("DiLoCo, float32", "diloco"),
    "muloco_2bit": Way("MuLoCo, 2 bits", "muloco_2bit"),
    "streaming_muloco_2bit": Way("Streaming MuLoCo, 2 bits", "streaming_muloco_2bit"),
}


@dataclass(frozen=True)
class Shape:
    """What all arms train, and how their outer loops go. batch: sequences a step, of all workers."""

    layers: int = 3
    width: int = 128
    context: int = 128
    vocabulary: int = 1568
    batch: int = 32
    fragments: int = 4
    overlap: int = 5

    @property
    def step_tokens(self) -> int:
        return self.batch * self.context

    def tree(self, way: Way, every: int, tokens: int) -> Tree:
        """The configuration of a run of one of the ways."""
        asked = merge(read_toml(RECIPES / "synchronous.toml"), read_toml(RECIPES / f"{way.recipe}.toml"))
        sync: Tree = {"every": every}
        if way.ddp:
            # a configuration of several workers has some outer loop; data parallelism has no use for it
            sync["name"] = "diloco"
        elif "fragments" in asked["sync"]:
            sync |= {"fragments": self.fragments, "overlap": self.overlap}
        model = {"layers": self.layers, "width": self.width, "context": self.context}
        train = {"batch": self.batch, "evaluate_every": 1.0, "checkpoint_every": 1e6, "sample_tokens": 0}
        own: Tree = {"workers": WORKERS, "transport": "distributed", "budget": f"{tokens}tok", "sync": sync}
        own |= {"data": {"vocabulary": self.vocabulary}, "execution": {"device": "cpu"}}
        return merge(asked, {**own, "model": model, "train": train})

    def outer(self, way: Way, every: int) -> DiLoCo:
        """An outer loop around such a model, of one worker: its shapes, fragments and schedule are those of the arm."""
        config = build(RunConfig, merge(self.tree(way, every, 1), {"model": {"vocabulary": self.vocabulary}}))
        return config.sync.build().attach(Transformer(config.model), None, None, roles={})


@dataclass(frozen=True)
class Arm:
    """One measurement. steps: taken, of `asked`, where the rest is worked out from them. rate: bits a second, None: unshaped."""

    way: str
    every: int
    steps: int
    asked: int
    rate: float | None = None
    delay: float = 0.0

    @property
    def key(self) -> str:
        where = "unshaped" if self.rate is None else f"{self.rate / 1e6:g} Mbit/s"
        where += f", {1000 * self.delay:g} ms" if self.delay else ""
        return f"{self.way}, H = {self.every}, {self.asked} steps, {where}"


class Bytes:
    """What the model says of one way's bytes and seconds. outer: None for DDP."""

    def __init__(self, shape: Shape, way: Way, every: int) -> None:
        self.every = every
        outer = shape.outer(way, every)
        self.parameters, self.outer = count_parameters(outer.model), None if way.ddp else outer
        self.exchanges = [Exchange.of(fragment, outer.codec, WORKERS) for fragment in outer.fragments]

    def sent(self, steps: int) -> float:
        """Bytes that each worker sends in so many steps."""
        if self.outer is None:
            return steps * all_reduce_bytes(4 * self.parameters, WORKERS)
        counts = self.predicted(steps, 1.0, Link(math.inf)).exchanges
        return sum(count * exchange.sent for count, exchange in zip(counts, self.exchanges, strict=True))

    def predicted(self, steps: int, step_seconds: float, link: Link) -> Predicted:
        if self.outer is None:
            payload = 4 * self.parameters
            transfer = all_reduce_seconds(payload, WORKERS, link)
            return data_parallel(steps, step_seconds, transfer, beside_backward(payload, step_seconds, transfer))
        return outer_loop(
            steps,
            step_seconds,
            [exchange.seconds(link) for exchange in self.exchanges],
            every=self.every,
            offsets=self.outer.offsets,
            overlap=self.outer.overlap,
        )
