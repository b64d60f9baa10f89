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


def tuning_request(place: str, method: str, asked: Tree, old: str) -> TrainingRequest:
    """The request, complete and checked.

    place: of the base. method: of `methods_of_tuning`. asked: plain values, laid over what is planned.
    old: the corpus that forgetting is judged on; '' for none.
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
    if method != FULL:
        edits = tables(asked.get("edits", []))
        if method not in [one["name"] for one in edits]:
            edits.append({"name": method})
        asked = {**asked, "edits": edits}
    first = TrainingRequest.of(asked)
    model = peek(place).model
    if not isinstance(model, LanguageModule):
        raise UsageError(f"{place} can be used, and not be trained: it is {peek(place).about.kind}")
    lengths, learnt = list[int](), 1.0
    if asked["data"].get("kind") == "chat":
        with held_back("shoestring.data"):  # the run says it
            store = prepare(first.data(), cache_folder()).train
        lengths = _lengths(store)
        learnt = 1.0 if store.marks is None else float(store.marks.tokens.mean())
    choice = None if method == FULL else _choice(asked, method)
    planned = plan_tuning(model, choice, first.budget, probe(), asked, lengths, learnt)
    return TrainingRequest.of(_with(asked, planned), planned=planned)


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
