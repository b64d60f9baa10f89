"""What a person sees of a run: the line of text that a line of metrics becomes."""

import io
import math
from typing import Any

import pytest
from rich.console import Console

from shoestring.cli.live import LiveView

ALONE = {
    "kind": "train",
    "step": 40,
    "progress": 0.25,
    "seconds": 15.0,
    "loss": 3.21,
    "tokens_per_second": 1500.0,
}
AMONG_FOUR = ALONE | {
    "workers": 4,
    "processes": 4,
    "sent": 3_000_000,
    "received": 3_000_000,
    "sync_exposed": 2.0,
    "sync_hidden": 4.0,
}


def shown(*lines: dict[str, Any]) -> str:
    text = io.StringIO()
    view = LiveView(Console(file=text, width=500), peak=1e9, flops_per_token=1e5, budget_seconds=60.0)
    with view:
        for line in lines:
            view.last_plain = -math.inf  # as if the last one were long ago
            view.show(line)
    return text.getvalue()


def test_a_worker_alone() -> None:
    heldout = {"kind": "heldout", "loss": 3.0, "bits_per_byte": 2.0}
    assert shown(heldout, ALONE) == (
        "   25%  step 40  loss 3.210  1,500 tok/s  15% of peak  left 45.0 s  held-out 3.000 (2.000 bits/byte)\n"
    )


def test_workers_and_their_link() -> None:
    """Tokens a second of all processes, bytes a second while an exchange was under way."""
    assert shown(AMONG_FOUR) == (
        "   25%  step 40  loss 3.210  6,000 tok/s  15% of peak  left 45.0 s"
        "  4 workers, sent 3 MB at 500 kB/s, waited 2.0 s, hidden 4.0 s\n"
    )


@pytest.mark.parametrize("more", [{"sent": 0, "sync_exposed": 0.0, "sync_hidden": 0.0}])
def test_before_the_first_exchange_there_is_no_rate(more: dict[str, Any]) -> None:
    assert shown(AMONG_FOUR | more).endswith("  4 workers, sent 0 B, waited 0.0 s, hidden 0.0 s\n")


def test_one_worker_that_smooths_its_own_path_has_no_link() -> None:
    assert shown(AMONG_FOUR | {"workers": 1, "processes": 1}) == shown(ALONE)
