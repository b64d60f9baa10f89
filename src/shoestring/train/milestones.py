"""The registry of a run's milestones: checkpoints at shares of the budget, each as good as a run of that budget."""

from collections.abc import Mapping
from typing import Any

from shoestring.json_files import damaged, read_json
from shoestring.train.evaluate import Heldout
from shoestring.train.run_folder import RunFolder

NAME = "milestones.json"


class Milestones:
    """`milestones.json` of a run folder: one entry a milestone, with its share of the budget, its step (that of the
    checkpoint kept), what had been spent by then, and the held-out loss."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        path = folder.path / NAME
        self.entries: list[dict[str, Any]] = read_json(path, list, "a list of milestones") or []
        if not all(isinstance(entry, dict) and isinstance(entry.get("step"), int) for entry in self.entries):
            raise damaged(path, 1, "a list of milestones, each with its step, is expected")

    def steps(self) -> frozenset[int]:
        """Steps whose checkpoints are kept."""
        return frozenset(int(entry["step"]) for entry in self.entries)

    def add(self, share: float, spent: Mapping[str, Any], heldout: Heldout) -> None:
        """spent: the step, and seconds, FLOPs and tokens so far."""
        found = {"heldout_loss": heldout.loss, "bits_per_byte": heldout.bits_per_byte}
        self.entries.append({"share": share, **spent, **found})
        self._folder.write_json(NAME, self.entries)

    def roll_back(self, step: int) -> None:
        """Forget the milestones after `step`, which the resumed run passes again."""
        kept = [entry for entry in self.entries if entry["step"] <= step]
        if kept != self.entries:
            self.entries = kept
            self._folder.write_json(NAME, kept)
