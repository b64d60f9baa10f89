"""`shoestring methods`: the cards."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from shoestring.cli.arguments import Arguments
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import ENGINES, methods


def run(words: Sequence[str]) -> int:
    parser = Arguments(
        "methods", "List the methods, engine by engine: what each claims, what it costs, where it is from."
    )
    parser.add_argument("engine", nargs="?", help="only this engine: " + ", ".join(ENGINES))
    engine = parser.read(words).engine
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"no engine '{engine}': {did_you_mean(engine, ENGINES)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("engine", "method", "what it does", "its source claims", "costs", "source"):
        table.add_column(column, overflow="fold", no_wrap=column in ("engine", "method"))
    for card in methods(engine):
        where = f"{card.engine} / {card.kind}" if card.kind else card.engine
        table.add_row(where, card.name, card.summary, card.claim, card.cost, card.paper)
    Console().print(table)
    return 0
