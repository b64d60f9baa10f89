"""Runs on several corpora: killed in the middle of a change of mixture they go on exactly; losses by domain; what is refused."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shoestring.data.config import DataConfig
from shoestring.method import methods
from shoestring.train.loop import Loop
from tests.train.command import TINY, newest_weights
from tests.train.command import shoestring_here as shoestring

STEPS = 24
BUDGET = f"--budget={STEPS * 4 * 32}tok"

MIXTURES: dict[str, Sequence[str]] = {
    "fixed": ("--data.mixture.weights.lines=1", "--data.mixture.weights.numbers=2"),
    "dynamic_loading": ("--data.mixture.reference.lines=1.5", "--data.mixture.reference.numbers=5"),
}


@pytest.fixture(scope="module")
def sources(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    numbers = tmp_path_factory.mktemp("numbers")
    for number in range(60):
        digits = " ".join(str((number * 7919 + place * place) % 1000) for place in range(60))
        (numbers / f"{number}.txt").write_text(digits)
    return (f"--data.source.lines.corpus={corpus}", f"--data.source.numbers.corpus={numbers}")


def heldout(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "heldout"]


def killed_at(step: int, words: Sequence[object]) -> None:
    """Run the command in a child process that is killed as it begins a step."""
    child = os.fork()
    if not child:
        taken = Loop._step

        def step_or_die(self: Loop, progress: float) -> None:
            if self.position.step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            taken(self, progress)

        Loop._step = step_or_die  # type: ignore[method-assign]
        shoestring(*words)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


WAYS: dict[str, Sequence[str]] = {
    "dynamic loading": ("--data.mixture=dynamic_loading", *MIXTURES["dynamic_loading"]),
    "a ramp of rows that are packed, their lengths in stages": (
        "--data.mixture=ramp",
        "--data.mixture.start.lines=1",
        "--data.mixture.end.numbers=1",
        "--data.packing=isolated",
        "--data.rows=histogram",
        "--data.length=length_stages",
        "--data.length.stages=[8, 32]",
        "--data.length.until=[0.5]",
        "--train.micro_batch=2",
    ),
    "fixed weights": ("--data.mixture=fixed", *MIXTURES["fixed"]),
    "phases": (
        "--data.mixture=phases",
        "--data.mixture.until=[0.5]",
        "--data.mixture.weights=[{lines = 3, numbers = 1}, {lines = 1, numbers = 3}]",
    ),
    "a schedule in a file": ("--data.mixture=online_schedule", "--data.mixture.file=SCHEDULE"),
    "replay that answers to a loss": (
        "--data.mixture=replay",
        '--data.mixture.old=["lines"]',
        "--data.mixture.recover=0.1",
    ),
    "experiments on what is read, and rows that are medoids": (
        "--data.interventions=planted_texts,planted_until",
        "--data.interventions.planted_texts.file=TEXTS",
        "--data.interventions.planted_texts.times=5",
        "--data.interventions.planted_until.file=TEXTS",
        "--data.interventions.planted_until.domain=numbers",
        "--data.interventions.planted_until.loss=9",
        "--data.selection=colm",
        "--train.micro_batch=2",
    ),
}


GROUPED: dict[str, Sequence[str]] = {
    "sorted_batches": ("--data.rows=sorted_batches", "--data.rows.group=2"),
    "related_batches": ("--data.rows=related_batches", "--data.rows.group=2", "--data.rows.dimensions=8"),
}
"""Of one corpus: these have rows of their own lengths, and no sources."""


def test_every_mixture_and_packing_is_killed_in_the_middle() -> None:
    words = [word for way in (*WAYS.values(), *GROUPED.values()) for word in way]
    for kind, key in (("mixture", "mixture"), ("packing", "rows")):
        assert {card.name for card in methods("data", kind)} <= {
            word.removeprefix(f"--data.{key}=") for word in words if word.startswith(f"--data.{key}=")
        }


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_killed_goes_on_exactly(way: str, sources: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a text that is planted"}\n{"text": "another"}\n')
    (tmp_path / "schedule.json").write_text('{"lines": 1, "numbers": 4}')  # taken over at the first evaluation
    files = {"TEXTS": "texts.jsonl", "SCHEDULE": "schedule.json"}
    mixture = list(WAYS[way])
    for word, name in files.items():
        mixture = [each.replace(word, str(tmp_path / name)) for each in mixture]
    goes_on_exactly([*sources, *mixture], tmp_path)
    found = [[line["domains"] for line in heldout(tmp_path / run)] for run in ("whole", "killed")]
    assert found[0] == found[1]
    for line in heldout(tmp_path / "whole"):
        assert min(line["domains"].values()) <= line["loss"] <= max(line["domains"].values())


@pytest.mark.parametrize("rows", GROUPED)
def test_a_run_on_grouped_rows_that_is_killed_goes_on_exactly(rows: str, corpus: Path, tmp_path: Path) -> None:
    goes_on_exactly([f"--data.corpus={corpus}", "--data.packing=isolated", *GROUPED[rows]], tmp_path)
    losses = [line["loss"] for line in heldout(tmp_path / "whole")]
    assert losses[-1] < losses[0]


def goes_on_exactly(data: Sequence[str], tmp_path: Path) -> None:
    """A run that is killed as it begins a step has the weights and losses of a whole one, once it has gone on."""
    words = ["train", BUDGET, *data, *TINY, "--train.evaluate_every=0.1"]
    status, _, errors = shoestring(*words, "--out", tmp_path / "whole")
    assert status == 0, errors
    often = "--train.checkpoint_every=0.000001"
    killed_at(14, [*words, often, "--out", tmp_path / "killed"])
    status, _, errors = shoestring("train", "--resume", tmp_path / "killed")
    assert status == 0, errors
    assert newest_weights(tmp_path / "killed") == newest_weights(tmp_path / "whole")
    losses = [[line["loss"] for line in heldout(tmp_path / run)] for run in ("whole", "killed")]
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 9


SELECTIONS = {
    "hard_batches": ("--data.selection.delta=2",),
    "bmdal": ("--data.selection.width=16", "--train.micro_batch=4"),
    "colm": ("--data.selection.more=2",),
    "jest": ("--data.selection.reference=RUN", "--data.selection.more=2"),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_charged_to_the_budget(name: str, corpus: Path, tmp_path: Path) -> None:
    words = ["train", f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0", "--budget=1e9flops"]
    status, _, errors = shoestring(*words, "--out", tmp_path / "plain")
    assert status == 0, errors
    options = [option.replace("RUN", str(tmp_path / "plain")) for option in SELECTIONS[name]]
    status, _, errors = shoestring(*words, f"--data.selection={name}", *options, "--out", tmp_path / "chosen")
    assert status == 0, errors
    plain, chosen = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("plain", "chosen"))
    assert chosen["flops"] == pytest.approx(plain["flops"], rel=0.05)  # the same budget, choosing included
    assert chosen["steps"] < 0.9 * plain["steps"]
    spent = chosen["accounts"]["selection"]
    assert 0 < spent["flops"] < chosen["flops"]
    assert spent["read"] >= 2 * chosen["steps"] * 4 * 32


def test_dynamic_loading_reads_more_of_the_domain_that_lags(sources: Sequence[str], tmp_path: Path) -> None:
    taken = {}
    for reference in ("lines", "numbers"):
        other = {"lines": "numbers", "numbers": "lines"}[reference]
        words = [f"--data.mixture.reference.{reference}=9", f"--data.mixture.reference.{other}=0"]
        run = tmp_path / reference
        options = ("--data.mixture=dynamic_loading", *words, *TINY, "--train.evaluate_every=0.1")
        status, _, errors = shoestring("train", BUDGET, *sources, *options, "--out", run)
        assert status == 0, errors
        state = json.loads((sorted((run / "checkpoints").iterdir())[-1] / "state.json").read_text())
        taken[reference] = state["stream"]["taken"]
        assert sum(taken[reference].values()) == state["position"]["sequences"]
    assert taken["lines"]["numbers"] > 2 * taken["numbers"]["numbers"]


def test_the_report_tells_what_curating_dropped_and_the_loss_of_each_source(
    sources: Sequence[str], tmp_path: Path
) -> None:
    numbers = sources[1].partition("=")[2]
    rules = ("--filter=quality_rules", "--filter.quality_rules.stop_words=0", "--filter.quality_rules.letters=0")
    more = ("--filter.quality_rules.shortest=2", "--filter.quality_rules.repetition=0")
    status, _, errors = shoestring(
        "data", numbers, *rules, *more, "--filter.quality_rules.least_words=61", "--out", tmp_path / "none"
    )
    assert (status, errors) == (0, "")
    status, _, errors = shoestring("data", numbers, *rules, *more, "--out", tmp_path / "kept")
    assert (status, errors) == (0, "")
    words = ["train", "--budget=1ktok", sources[0], f"--data.source.numbers.corpus={tmp_path / 'kept'}", *TINY]
    status, _, errors = shoestring(*words, "--out", tmp_path / "run")
    assert status == 0, errors
    status, _, errors = shoestring("report", tmp_path / "run")
    assert status == 0, errors
    page = (tmp_path / "run" / "report.html").read_text()
    for said in (
        "What it read",
        "Held-out loss on lines",
        "Held-out loss on numbers",
        "numbers: text kept",
        "60 documents",
    ):
        assert said in page


def test_the_sources_may_have_moved(sources: Sequence[str], tmp_path: Path) -> None:
    status, _, errors = shoestring("train", "--budget=1ktok", *sources, *TINY, "--out", tmp_path / "run")
    assert status == 0, errors
    status, _, errors = shoestring(
        "train", "--resume", tmp_path / "run", f"--data.source.lines.corpus={tmp_path / 'gone'}"
    )
    assert status == 2
    assert "data.source.lines.corpus of this run is" in errors
    status, _, errors = shoestring("evaluate", tmp_path / "run")
    assert status == 2
    assert "trained on several sources" in errors


def test_a_recipe_without_sources_is_written_as_before() -> None:
    from shoestring.config import tree

    assert not {"source", "mixture", "rows", "length", "selection"} & set(tree(DataConfig()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.source.lines.corpus=/nonexistent"], "no such file"),
        (["--data.source.lines.corpu=x"], "did you mean 'corpus'"),
        (["--data.mixture=fixed"], "give data.source too"),
        (["--data.mixture.weights.songs=1"], "of 'songs', which is no source"),
        (["--data.mixture=dynamic_loading"], "reference' is needed"),
        (
            ["--workers=2", "--sync=diloco", "--data.mixture=dynamic_loading", *MIXTURES["dynamic_loading"]],
            "set workers = 1",
        ),
        (["--transport=pipeline", "--execution.device=cpu"], "transport = pipeline reads one corpus"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(
    words: list[str], said: str, sources: Sequence[str], tmp_path: Path
) -> None:
    own = () if words == ["--data.mixture=fixed"] else sources
    status, _, errors = shoestring("train", "--budget=1ktok", *own, *TINY, *words, "--out", tmp_path / "run")
    assert status == 2, errors
    assert len(errors.splitlines()) == 1
    assert said in errors
