"""Three domains of text from Python's own library, made clean, noisy and copied; and a small model trained on them within a budget.

What `data_selection.py` and `mixture_ranking.py` stand on. The domains: 'code' (functions and classes without their docstrings),
'docstrings', and 'reference' (the language reference in `pydoc_data`). All of it is drawn by seeded generators from files that
are sorted by name: the same Python gives the same pool. Documents are cut to `LONGEST` characters.

Parts that share no document: held-out text, by which arms are judged, and the pool. A few clean documents of the pool are
'trusted': methods that need text of the quality that is wanted may look at them, and every arm trains on them.
"""

import ast
import hashlib
import random
import sysconfig
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.budget.machine import probe
from shoestring.contract.batch import Batch
from shoestring.contract.cost import Shape
from shoestring.contract.objective import At
from shoestring.data.bpe import byte_tokenizer
from shoestring.data.selection import Selection
from shoestring.data.store import TokenStore
from shoestring.data.stream import Stream, stream_of
from shoestring.data.windows import BatchSource, Windows
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.adamw import AdamW
from shoestring.train.run_folder import environment


def untimed_environment() -> dict[str, Any]:
    """Where something ran that is not timed: without the rates of the machine, which other work may have slowed."""
    found = environment(probe())
    found["machine"] = {key: value for key, value in found["machine"].items() if key not in ("matmul", "bandwidth")}
    return found


NAMES = ("code", "docstrings", "reference")
SHARES = {"code": 0.6, "docstrings": 0.25, "reference": 0.15}
"""Of the pool's text."""
MAKE = {"clean": 0.5, "noisy": 0.25, "copy": 0.25}
"""Of each domain's text: documents that are there once, spoilt ones, and copies of the clean ones."""
SHORTEST, LONGEST = 300, 2000
HEARD = 8
"""How often a mixture that listens hears the losses on the trusted text."""


@dataclass(frozen=True)
class Pool:
    """texts, domains, kinds: of each document, the domain's name and a key of `MAKE`. heldout, trusted: texts by domain."""

    texts: tuple[str, ...]
    domains: tuple[str, ...]
    kinds: tuple[str, ...]
    heldout: Mapping[str, tuple[str, ...]]
    trusted: Mapping[str, tuple[str, ...]]


def _modules() -> list[ast.Module]:
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if path.name.startswith("_sysconfigdata"):  # differs from one machine to the next
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(ast.parse(path.read_text(encoding="utf-8")))
    return found


@cache
def clean() -> dict[str, list[str]]:
    """All clean documents by domain, each once, in an order drawn by their digests."""
    import pydoc_data.topics

    code, docstrings = list[str](), list[str]()
    for module in _modules():
        described = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)]
        docstrings += [ast.get_docstring(node) or "" for node in described]
        defined = [node for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        code += [ast.unparse(_Undocumented().visit(node)) for node in defined]
    reference = [piece for _, text in sorted(pydoc_data.topics.topics.items()) for piece in _cut(text)]
    found = {}
    for name, texts in zip(NAMES, (code, docstrings, reference), strict=True):
        kept = {text[:LONGEST] for text in texts if len(text) >= SHORTEST}
        found[name] = sorted(kept, key=lambda text: hashlib.sha256(text.encode()).digest())
    return found


class _Undocumented(ast.NodeTransformer):
    """Code without its docstrings."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
        return node


def _cut(text: str) -> list[str]:
    """A long text in pieces of whole paragraphs."""
    pieces, held = [], ""
    for paragraph in text.split("\n\n"):
        held += paragraph + "\n\n"
        if len(held) >= LONGEST * 3 // 4:
            pieces.append(held)
            held = ""
    return [*pieces, held]


def wrong_letters(text: str, generator: random.Random) -> str:
    """One letter in five is another."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(generator.choice(letters) if c.isalpha() and generator.random() < 0.2 else c for c in text)


def shuffled_words(text: str, generator: random.Random) -> str:
    words = text.split()
    generator.shuffle(words)
    return " ".join(words)


def menu(text: str, generator: random.Random) -> str:
    """The frame of a page: short lines that come again."""
    words = sorted({word for word in text.split() if word.isalpha()})[:20] or ["page"]
    lines = [f"* {generator.choice(words)} | {generator.choice(words)} | next ... " for _ in range(len(text) // 25)]
    return "\n".join(lines)


SPOIL: tuple[Callable[[str, random.Random], str], ...] = (wrong_letters, shuffled_words, menu)


def copied(text: str, generator: random.Random) -> str:
    """The text, or one with one word in a hundred replaced."""
    if generator.random() < 0.5:
        return text
    return " ".join(f"w{generator.randrange(1000)}" if generator.random() < 0.01 else w for w in text.split(" "))


def make_pool(size: int, heldout: int, trusted: int, seed: int) -> Pool:
    """size: characters of the pool. heldout, trusted: characters of each domain."""
    generator = random.Random(seed)
    documents: list[tuple[str, str, str]] = []
    held, good = {}, {}
    for name in NAMES:
        order = list(clean()[name])
        held[name] = _taken(order, heldout)
        want = size * SHARES[name]
        mine = _taken(order, int(want * MAKE["clean"]))
        good[name] = _least(mine, trusted)
        documents += [(text, name, "clean") for text in mine]
        rest = order or list(mine)
        done, number = 0, 0
        while done < want * MAKE["noisy"]:  # of other documents, where there are any
            text = SPOIL[number % len(SPOIL)](rest[number % len(rest)], generator)
            documents.append((text, name, "noisy"))
            done, number = done + len(text), number + 1
        done = 0
        while done < want * MAKE["copy"]:  # a few documents have many copies
            text = mine[int(len(mine) * generator.random() ** 3)]
            text = copied(text, generator)
            documents.append((text, name, "copy"))
            done += len(text)
    generator.shuffle(documents)
    texts, domains, kinds = zip(*documents, strict=True)
    return Pool(texts, domains, kinds, held, good)


def _taken(order: list[str], characters: int) -> tuple[str, ...]:
    """Documents from the end of a list, which they are taken out of."""
    found: list[str] = []
    while sum(map(len, found)) < characters:
        if not order:
            raise SystemExit("the library has too little text of a domain: ask for a smaller pool")
        found.append(order.pop())
    return tuple(found)


def _least(texts: Sequence[str], characters: int) -> tuple[str, ...]:
    found: list[str] = []
    for text in texts:
        if sum(map(len, found)) >= characters:
            break
        found.append(text)
    return tuple(found)


def store_of(texts: Sequence[str]) -> TokenStore:
    tokenizer = byte_tokenizer()
    return TokenStore.of([tokenizer.encode(text) for text in texts], tokenizer.end)


# ---- a small model


@dataclass(frozen=True)
class Size:
    """Of a model and its batches. lr: of AdamW, after a warm-up of a twentieth, falling to nothing."""

    layers: int = 2
    width: int = 64
    context: int = 64
    rows: int = 16
    lr: float = 4e-3

    def model(self, seed: int) -> Transformer:
        torch.manual_seed(seed)
        return Transformer(
            ModelConfig(
                vocabulary=byte_tokenizer().vocabulary,
                layers=self.layers,
                width=self.width,
                heads=max(1, self.width // 32),
                context=self.context,
            )
        )


@dataclass(frozen=True)
class Budget:
    """What may be spent: FLOPs that are counted, or seconds of this process's processor time since `begun`. Other programs take
    none of those seconds, though they may make them longer by what they do to caches."""

    amount: float
    unit: Literal["flops", "seconds"] = "flops"
    begun: float = field(default_factory=time.process_time)

    def used(self, flops: float) -> float:
        """What is spent of it by now. flops: that were counted, which is all that a budget of FLOPs knows."""
        return flops if self.unit == "flops" else time.process_time() - self.begun

    def part(self, share: float) -> "Budget":
        """A budget of that share, for something made now. It is not taken off this one, unless the clock does."""
        return Budget(share * self.amount, self.unit)

    def after(self, flops: float) -> "Budget":
        """What is left when so many FLOPs were counted before; of seconds the clock has taken it."""
        return self if self.unit == "seconds" else Budget(self.amount - flops)


@dataclass(frozen=True)
class Trained:
    """losses: nats a byte on held-out text, by domain. spent: all FLOPs, of what trained and of what chose. tokens: trained on.
    used, before, chosen: of the budget, in its unit: by the end, when training began, and by choosing rows."""

    model: Transformer
    losses: Mapping[str, float]
    spent: int
    tokens: int
    used: float
    before: float
    chosen: float

    @property
    def loss(self) -> float:
        return sum(self.losses.values()) / len(self.losses)


def measured(model: Transformer, texts: Mapping[str, Sequence[str]], size: Size) -> tuple[dict[str, float], Charge]:
    """(nats a token by domain, what that took)."""
    losses, spent = {}, NOTHING
    for name, own in texts.items():
        windows = Windows(store_of(own), size.context, 0, shuffle=False)
        nats = targets = 0.0
        for start in range(0, len(windows), 64):
            batch = windows.batch(start, min(64, len(windows) - start))
            with torch.no_grad():
                logits = model.read(batch.inputs).logits().flatten(0, 1)
                nats += float(F.cross_entropy(logits, batch.targets.flatten(), reduction="sum"))
            targets += batch.tokens
            spent += Charge(flops=model.cost(Shape(batch.rows, size.context)).flops)
        losses[name] = nats / targets
    return losses, spent


def train(
    source: BatchSource | Stream,
    size: Size,
    seed: int,
    budget: Budget,
    pool: Pool,
    *,
    selection: Selection | None = None,
    listens: bool = False,
    judge: bool = True,
) -> Trained:
    """A model trained until the next step would exceed the budget, in which choosing rows and telling a mixture are included.

    listens: the source hears the losses on the trusted text. judge: measure the held-out loss, which costs nobody anything.
    """
    model, stream = size.model(seed), stream_of(source)
    optimizer = AdamW(model.parameters(), lr=size.lr, weight_decay=0.1)
    more = 1 if selection is None else selection.more
    step_cost = model.cost(Shape(size.rows, size.context, backward=True)).flops
    spent = drawn = tokens = step = heard = 0
    chosen, first = 0.0, budget.used(0)
    needed: float = step_cost if budget.unit == "flops" else 0.0
    while (used := budget.used(spent)) + needed <= budget.amount:
        progress = (used - first) / (budget.amount - first)
        if listens and progress >= heard / HEARD:
            losses, took = measured(model, pool.trusted, size)
            stream.hear(progress, losses)
            spent, heard = spent + took.flops, heard + 1
            used = budget.used(spent)
        batch: Batch = stream.take(drawn, size.rows * more, progress)
        drawn += size.rows * more
        if selection is not None:
            before = budget.used(spent)
            picked = selection.choose(model, batch.split(size.rows), size.rows, At(step, progress, seed))
            batch = batch.take(picked.rows)
            spent += picked.spent.flops
            chosen += budget.used(spent) - before
        loss = F.cross_entropy(model.read(batch.inputs).logits().flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = size.lr * min(1.0, 20 * progress + 0.05) * (1 - progress)
        optimizer.step()
        optimizer.zero_grad()
        spent, tokens, step = spent + step_cost, tokens + batch.tokens, step + 1
        needed = budget.used(spent) - used
    if not step:
        raise SystemExit(
            f"{budget.amount:.3g} {budget.unit} are not enough for one step: {first:.3g} were spent before"
        )
    used = budget.used(spent)
    return Trained(model, measured(model, pool.heldout, size)[0] if judge else {}, spent, tokens, used, first, chosen)
