"""Gain and forgetting: how the losses on new and on old text change while a model is tuned."""

from typing import TYPE_CHECKING

import numpy as np

from shoestring.report.curves import along, finite
from shoestring.report.drawing import COLOUR, label_ends, name_axes, panel, style
from shoestring.report.run_files import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def has_old_text(run: Run) -> bool:
    """Whether a run judged old text, at two times or more."""
    return len(finite(run.heldout, "progress", "old_loss")[0]) > 1


@style()
def forgetting_figure(run: Run) -> "Figure":
    """Both losses less what they were before the first step, over the share of the budget. Down is gained, up is forgotten."""
    figure, axes = panel(340, 220, right=74)
    ends = []
    scale, label = along("progress", 1.0)
    for key, name, colour in (("loss", "new text", "s1"), ("old_loss", "old text", "s2")):
        x, y = finite(run.heldout, "progress", key)
        change = y - y[0]
        axes.plot(x / scale, change, "o-", color=COLOUR[colour], linewidth=1.5, markersize=4)
        ends.append((float(x[-1] / scale), float(change[-1]), f"{name}\n{change[-1]:+.3f}", colour))
    axes.axhline(0, color=COLOUR["muted"], linewidth=0.8)
    values = np.concatenate([finite(run.heldout, "progress", key)[1] for key in ("loss", "old_loss")])
    axes.margins(y=0.15 if np.ptp(values) else 1.0)
    axes.set_xlim(0, 101)
    axes.set_xticks([0, 25, 50, 75, 100])
    name_axes(axes, label, "change, nats per token")
    label_ends(axes, ends)
    return figure
