import math

import numpy as np
import pytest

from shoestring.plan.law import Fitted
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.runs_table import RunsTable
from shoestring.report.law_figure import law_figure

LAWS = {
    "Float": {"E": 1.8, "A": 60.0, "B": 300.0, "alpha": 0.35, "beta": 0.45},
    "Ternary": {"E": 2.19, "A": 200.0, "B": 3e4, "alpha": 0.32, "beta": 0.81},
}


@pytest.fixture(scope="module")
def fits() -> dict[str, Fitted]:
    drawn, law, made = np.random.default_rng(0), Chinchilla(), {}
    for name, constants in LAWS.items():
        rows = [{"parameters": n, "tokens": d} for n in np.geomspace(1e5, 64e5, 4) for d in np.geomspace(1e5, 64e5, 4)]
        losses = [law.value(constants, row) * math.exp(0.003 * drawn.standard_normal()) for row in rows]
        table = RunsTable.of([{**row, "loss": loss} for row, loss in zip(rows, losses, strict=True)])
        made[name] = law.fit(table, resamples=2, rungs=0)
    return made


def test_the_figure_shows_the_exponents_and_every_run(fits: dict[str, Fitted]) -> None:
    figure = law_figure(fits)
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == 2
    for axes, fit in zip(panels, fits.values(), strict=True):
        words = " ".join(text.get_text() for text in axes.texts)
        assert f"α = {fit.constants['alpha']:.2f}" in words
        assert sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o") == 16  # type: ignore[arg-type, misc]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    with pytest.raises(ValueError, match="no fit"):
        law_figure({})
