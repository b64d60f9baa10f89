"""`shoestring prepare`: make what a decoding method needs, of a model and of texts."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shoestring.base import open_model
from shoestring.base.drafting import open_draft
from shoestring.base.text import read_text
from shoestring.base.writer import Writer
from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import TYPES_HELP, Arguments, dtype_named, whole
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import Choice, Tree, build, overrides
from shoestring.data.config import DataConfig
from shoestring.decode.preparation import Given, Prepared
from shoestring.decode.supplied import WHAT, needs
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import find, methods
from shoestring.task import Task

KIND = "preparation"
CHARACTERS = 32
"""Of text that are drawn for each token that is wanted."""
LEAST, PARTS = 512, 32
"""Tokens that a document may always give; and documents that a long text is of, at least."""


def run(words: Sequence[str]) -> int:
    known = {card.name: card for card in methods("decode", KIND)}
    lines = "\n".join(f"  {name:10} {card.summary}" for name, card in known.items())
    parser = Arguments(
        "prepare",
        "Make what a decoding method needs, of a model and of texts.",
        f"methods:\n{lines}\n\nTheir options are flags: --prepare.OPTION VALUE. `shoestring methods NAME` explains them.",
    )
    parser.add_argument("method", metavar="METHOD", help=f"one of {', '.join(known)}")
    parser.add_argument("place", metavar="PLACE", help="the model that will write, as `shoestring generate` takes it")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it")
    parser.add_argument("--text", metavar="PATH", help="a corpus, as --data.corpus of a run")
    parser.add_argument("--task", metavar="NAME", help="problems of a task, with their answers, in place of text")
    parser.add_argument("--problems", type=whole(1, 10**6), default=200, help="with --task: how many (default 200)")
    parser.add_argument("--tokens", type=whole(2, 1 << 30), default=20_000, help="of text at most (default 20000)")
    parser.add_argument("--draft", metavar="PLACE", help="the draft model, where one is needed")
    parser.add_argument("--dtype", type=dtype_named, metavar="TYPE", help=TYPES_HELP)
    add_json_flag(parser, "what was made, and what it took")
    found, rest = parser.read_with_configuration(words)
    options = overrides(rest)
    unknown = [name for name in options if name not in ("prepare", "task")]
    if unknown:
        raise UsageError(f"--{unknown[0]} is unknown: {did_you_mean(unknown[0], ('prepare', 'task'))}")
    choice = Choice.of("decode", found.method, kind=KIND, **_table(options, "prepare"))
    wanted = needs(find("decode", found.method, KIND).target)
    if (found.text is None) == (found.task is None):
        raise UsageError("give --text PATH or --task NAME, and not both")
    if "draft" in wanted and found.draft is None:
        raise UsageError(f"'{found.method}' needs {WHAT['draft']}: give --draft PLACE")
    if found.draft is not None and "draft" not in wanted:
        raise UsageError(f"'{found.method}' needs no draft model: leave --draft out")
    if found.out.is_dir():
        raise UsageError(f"{found.out} is a folder: give the name of a file")
    task: Task | None = None
    if found.task is not None:
        task = Choice.of("task", found.task, kind="task", **_table(options, "task")).build()
    writer = Writer.of(open_model(found.place, found.dtype))
    screen = Screen(soft_wrap=True, stderr=found.json)
    texts = (
        _texts(found.text, found.tokens, writer, screen) if task is None else _problems(task, found.problems, writer)
    )
    supplies: dict[str, Callable[[], Any]] = {
        "target": lambda: writer.opened.model,
        "texts": lambda: texts,
        "draft": lambda: open_draft(found.draft, writer.opened, found.dtype),
        "decode": lambda: writer.tokenizer.decode,
        "ends": lambda: writer.ends,
    }
    began = time.monotonic()
    made: Prepared = choice.build(*(supplies[name]() for name in wanted))
    made.save(found.out)
    seconds = time.monotonic() - began
    for line in made.found:
        screen.print(line)
    charge = made.charge
    screen.print(f"{found.out}: {show_seconds(seconds)}, {show('flops', charge.flops)}")
    if found.json:
        print_json(
            {
                "method": found.method,
                "file": str(found.out),
                "found": list(made.found),
                "seconds": seconds,
                "made": charge.as_dict(),
            }
        )
    return 0


def _table(options: Tree, name: str) -> Tree:
    table = options.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"--{name} takes options: --{name}.OPTION VALUE")
    return table


def _texts(path: str, tokens: int, writer: Writer, screen: Screen) -> list[Given]:
    """Beginnings of documents of a corpus, of so many tokens at most."""
    config = build(DataConfig, {"corpus": path}, lambda key: "--text" if key == "corpus" else f"--data.{key}")
    with shown_on(screen, before=""):
        text = read_text(config, CHARACTERS * tokens, whole=True)
    found, left = list[Given](), tokens
    most = max(LEAST, tokens // PARTS)  # of one document, so that several are read
    for document in text.documents:
        ids = writer.text_ids(document)[: min(left, most)]
        if len(ids) > 1:
            found.append(Given(tuple(ids)))
        left -= len(ids)
        if left < 1:
            break
    if not found:
        raise UsageError(f"{path} holds no text of two tokens or more")
    screen.print(f"read   {tokens - max(left, 0):,} tokens of {len(found):,} documents of {path}")
    return found


def _problems(task: Task, count: int, writer: Writer) -> list[Given]:
    """Problems of the split 'train', with their answers."""
    found = list[Given]()
    for problem in task.problems("train", 0, count):
        if problem.answer is None:
            continue
        prompt = writer.text_ids(problem.prompt)
        whole_ = writer.text_ids(task.document(problem))
        same = next((at for at, (a, b) in enumerate(zip(prompt, whole_, strict=False)) if a != b), len(prompt))

        def check(tokens: Sequence[int], problem: Any = problem) -> bool:
            text = writer.tokenizer.decode(list(tokens))
            for stop in task.stop:
                text = text.partition(stop)[0]
            return task.check(problem, text).right

        found.append(Given(tuple(whole_), same, check))
    if not found:
        raise UsageError("the task has no problems with a known answer")
    return found
