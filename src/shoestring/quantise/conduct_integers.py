"""An opened model made one of integers, kept as a folder, and measured before and after."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoestring import atomic
from shoestring.base.likelihood import TextLikelihood
from shoestring.base.opened import Opened
from shoestring.base.text import Text
from shoestring.budget.ledger import CALIBRATION, COMPUTE, Ledger
from shoestring.contract.batch import Batch
from shoestring.contract.cost import bytes_of
from shoestring.contract.model import LanguageModule
from shoestring.quantise.conduct import LEDGER, measure
from shoestring.quantise.footprint import Footprint
from shoestring.quantise.integer_only.convert import integer_model, require_convertible
from shoestring.quantise.integer_only.footprint import integer_footprint
from shoestring.quantise.integer_only.kept import IntegerOnlyFile, write_folder
from shoestring.quantise.openers.integer_only import IntegerOnlyOpener


@dataclass(frozen=True)
class IntegerOnlyOutcome:
    """What was made.

    bytes_before: of the weights, in the type that they had. bytes_after: of the file. used: memory in use.
    before, after: None where they were not measured. seconds: of converting, measuring left out.
    """

    bytes_before: int
    bytes_after: int
    used: Footprint
    before: TextLikelihood | None
    after: TextLikelihood | None
    seconds: float


def quantise_to_integers(
    opened: Opened,
    model: LanguageModule,
    calibration: Sequence[Batch],
    measured: Text | None,
    out: Path,
    ledger: Ledger,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> IntegerOnlyOutcome:
    """Write the integer-only counterpart of `model` to the folder `out`, whole or not at all.

    model: of `plain_module`. measured: text for the losses; None: they are not measured. The loss after is of the model as it is
    opened from the folder. Raises: as `integer_model`, before anything is measured where the model has no counterpart.
    """
    require_convertible(model)
    before = None if measured is None else measure(model, opened, measured, ledger, "before")
    began = clock()
    with ledger.clock(COMPUTE):
        made, spent = integer_model(model, calibration)
        used = integer_footprint(made)
    seconds = clock() - began
    ledger.charge(spent, CALIBRATION)
    footprint = {"weights": used.weights, "cache": used.cache, "activations": used.activations}
    ledger.write("quantise", to="integers", footprint=footprint)
    about = {"ends": list(opened.about.values.get("ends", [])), "footprint": footprint}
    with atomic.directory(out) as half:
        size = write_folder(half, IntegerOnlyFile(made, about), opened.tokenizer, opened.about.chat_template)
        (half / LEDGER).write_text("".join(json.dumps(line) + "\n" for line in ledger.entries))
    after = None
    if measured is not None:
        kept = IntegerOnlyOpener().open(str(out), None)
        after = measure(kept.model, kept, measured, ledger, "after")
    return IntegerOnlyOutcome(bytes_of(model), size, used, before, after, seconds)
