import json
import math
from pathlib import Path

import numpy as np
import pytest

from shoestring.errors import UsageError
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.memory import known, learn
from shoestring.plan.outlook import narrowest, outlook
from shoestring.plan.runs_table import RunsTable, text_of

LAW = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.34}


def run(folder: Path, **summary: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[data]\ncorpus = "web"\n[model]\nvocabulary = 512\n')
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def row(size: float, tokens: float) -> dict[str, float]:
    return {"parameters": size, "tokens": tokens}


def runs(count: int) -> RunsTable:
    drawn, law = np.random.default_rng(0), Chinchilla()
    grid = [row(n, d) for n in (3e5, 1e6, 3e6) for d in (1e6, 4e6, 16e6)][:count]
    return RunsTable.of(
        [{**one, "loss": law.value(LAW, one) * math.exp(0.003 * drawn.standard_normal())} for one in grid]
    )


def test_earlier_runs_tell_the_loss_of_a_plan() -> None:
    rows = [row(1e7, 1e8), row(3e6, 3e8), row(1e8, 1e7)]
    found = outlook(runs(9), rows, [row(1e5, 1e5), row(1e7, 5e7)])
    for one, said in zip(rows, found.expected, strict=True):
        assert said.low <= Chinchilla().value(LAW, one) <= said.high
    assert found.narrowing == 1  # the one near the plan
    assert 0 < found.narrowed < 1
    with pytest.raises(UsageError, match="5 runs on this text are too few"):
        outlook(runs(5), rows)


def test_the_run_that_narrows_most_does_narrow() -> None:
    law, aim = Chinchilla(tied=True), row(1e8, 1e9)
    table = runs(9)
    fitted = law.fit(table, rungs=0)
    candidates = [row(3e5, 1e6), row(1e7, 1e8), row(1e6, 4e6)]
    best, left = narrowest(fitted, aim, candidates)
    assert best == 1
    widths = []
    for one in candidates:
        more = table.joined(RunsTable.of([{**one, "loss": fitted.predict(one).value}]))
        said = law.fit(more, rungs=0).predict(aim)
        widths.append(said.high / said.low - 1)
    before = fitted.predict(aim)
    assert min(widths) == widths[best]
    assert widths[best] / (before.high / before.low - 1) == pytest.approx(left, abs=0.25)


def test_learned_runs_are_kept_by_their_text(tmp_path: Path) -> None:
    summary = {"parameters": 5000, "tokens": 4096, "steps": 32, "seconds": 4.2, "flops": 8e8, "heldout_loss": 3.5}
    one = run(tmp_path / "one", **summary)
    run(tmp_path / "other", **{**summary, "heldout_loss": 3.25})
    store = tmp_path / "cache" / "learned-runs.jsonl"
    assert known(store, text_of(one)) is None
    assert learn([one], store) == 1
    assert learn([tmp_path], store) == 2
    table = known(store, text_of(one))
    assert table is not None
    assert sorted(table.column("loss")) == [3.25, 3.5]
    assert known(store, "another text") is None
