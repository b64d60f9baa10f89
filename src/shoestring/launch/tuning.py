"""A request to tune a model that exists: what is learnt, by which method, and the plan of both."""

import itertools
import logging
from pathlib import Path
from typing import Any

from shoestring.base import peek
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import Choice, Tree, merge, tables
from shoestring.contract.model import LanguageModule
from shoestring.data.chat_files import holds_chats
from shoestring.data.places import absolute_path, is_path
from shoestring.data.prepare import prepare
from shoestring.data.store import TokenStore
from shoestring.errors import UsageError, did_you_mean
from shoestring.launch.request import TrainingRequest
from shoestring.log_lines import held_back
from shoestring.method import methods
from shoestring.plan.decision import PlanDecision
from shoestring.plan.tuning import plan_tuning

log = logging.getLogger(__name__)

FULL = "full"
"""The method that tunes all weights."""

OLD = "python-stdlib"
"""The text that forgetting is judged on, where none is named: every machine has it."""


def methods_of_tuning() -> list[str]:
    """The names that a method may have."""
    return [FULL, *(card.name for card in methods("tune", "edit"))]


def tuning_request(place: str, method: str, asked: Tree, old: str, replay: float = 0.0) -> TrainingRequest:
    """The request, complete and checked.

    place: of the base. method: of `methods_of_tuning`. asked: plain values, laid over what is planned.
    old: the corpus that forgetting is judged on; '' for none.
    replay: the share of what is read that is of the old corpus.
    Raises: UsageError.
    """
    known = methods_of_tuning()
    if method not in known:
        raise UsageError(f"--method {method}: {did_you_mean(method, known)}")
    if "corpus" not in asked.get("data", {}):
        raise UsageError("what is to be learnt? give --data.corpus PATH: chats as JSON lines, or any text")
    if Path(place).expanduser().exists():
        place = absolute_path(place)
    asked = merge({"model": {"base": place}, "old": {"corpus": old}}, asked)
    corpus = str(asked["data"]["corpus"])
    if "kind" not in asked["data"] and is_path(corpus) and holds_chats(corpus):
        asked = merge(asked, {"data": {"kind": "chat"}})
        log.info("its lines are chats: their answers are learnt")
    if replay:
        asked = _with_replay(asked, old, replay)
    if method != FULL:
        edits = tables(asked.get("edits", []))
        if method not in [one["name"] for one in edits]:
            edits.append({"name": method})
        asked = {**asked, "edits": edits}
    packed = bool(asked["model"].get("packed", False))
    if packed and method == FULL:
        raise UsageError("packed matrices stay as they are, and --method full trains all: give a method of adapters")
    first = TrainingRequest.of(asked)
    model = peek(place, packed).model
    if not isinstance(model, LanguageModule):
        raise UsageError(f"{place} can be used, and not be trained: it is {peek(place, packed).about.kind}")
    lengths, learnt = list[int](), 1.0
    if asked["data"].get("kind") == "chat":
        with held_back("shoestring.data"):  # the run says it
            found = prepare(first.data(), cache_folder())
        store = found.domains[0].train if found.domains else found.train  # the new text is the first
        lengths = _lengths(store)
        learnt = 1.0 if store.marks is None else float((store.marks.tokens > 0).mean())
    choice = None if method == FULL else _choice(asked, method)
    planned = plan_tuning(model, choice, first.budget, probe(), asked, lengths, learnt)
    return TrainingRequest.of(_with(asked, planned), planned=planned)


def _with_replay(asked: Tree, old: str, share: float) -> Tree:
    """What was asked for, with two sources in place of the one corpus: the new text, and the old."""
    if not 0 < share < 1:
        raise UsageError(f"--replay {share:g}: a share of what is read, above 0 and below 1")
    if not old:
        raise UsageError("--replay reads the old text again: name it with --old CORPUS")
    data: dict[str, Any] = dict(asked["data"])
    if {"source", "mixture"} & data.keys():
        raise UsageError("--replay makes data.source and data.mixture: give either it or them")
    if data.get("kind") == "chat" and not (is_path(old) and holds_chats(old)):
        raise UsageError(f"--replay: the new text is chats, and {old} is not: name a file of chats with --old")
    text: dict[str, Any] = {key: data.pop(key) for key in ("text_field", "encoding", "invalid") if key in data}
    sources = [{"name": "new", "corpus": data.pop("corpus"), **text}, {"name": "old", "corpus": old}]
    mixture = {"name": "replay", "old": ["old"], "share": share}
    data |= {"source": sources, "mixture": mixture}
    return {**asked, "data": data}


def _choice(asked: Tree, method: str) -> Choice:
    table: dict[str, Any] = next(one for one in asked["edits"] if one["name"] == method)
    return Choice.of("tune", method, kind="edit", **{key: value for key, value in table.items() if key != "name"})


def _with(asked: Tree, planned: tuple[PlanDecision, ...]) -> Tree:
    """The recipe with what was planned."""
    for one in planned:
        branch: Tree = {}
        *sections, last = one.key.split(".")
        inner = branch
        for section in sections:
            inner[section] = inner = {}
        inner[last] = one.value
        asked = merge(asked, branch)
    return asked


def _lengths(store: TokenStore) -> list[int]:
    """Of its documents, the end token included."""
    starts = [*store.document_starts.tolist(), len(store)]
    return [stop - start for start, stop in itertools.pairwise(starts)]
