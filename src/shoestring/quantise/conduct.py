"""An opened model quantised to a target within a budget, kept as a folder, and measured before and after."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoestring import atomic
from shoestring.base.likelihood import TextLikelihood, likelihood
from shoestring.base.opened import Opened
from shoestring.base.text import Text
from shoestring.budget.ledger import CALIBRATION, COMPUTE, EVALUATE, EVALUATION, Ledger
from shoestring.config import Choice
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.quantise.engine import Recipe, quantise_layers
from shoestring.quantise.folder import QuantisedFile, contents_of, overhead, require_kept, write_folder
from shoestring.quantise.format import Encoded
from shoestring.quantise.limits import Limits, Seconds, limits_of
from shoestring.quantise.openers.quantised import QuantisedOpener
from shoestring.quantise.progress import QuantiseProgress
from shoestring.quantise.quantisation import Quantisation
from shoestring.quantise.tables import table_bytes, table_names
from shoestring.quantise.target import BitTarget

log = logging.getLogger(__name__)

LEDGER = "ledger.jsonl"
DESCRIBED = 1200
"""Bytes of the header of a file that a matrix takes, at most."""

CHOOSING = 0.4
"""The share of a budget that is for choosing a transform and bits: the rest is for the layers."""

ENDS = 0.1
"""The share of a budget in seconds that is kept for writing."""


AS_THEY_COME = Choice.of("quantise", "none", kind="activations")


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    target: None: the format's own bits for all matrices.
    format, solver, transform, bits: the parts.
    table_bits: of embedding and head: 4, 8 or 16.
    keep: patterns of names of matrices that stay as they are.
    seconds: the budget; None: no limit.
    activations: how what matrices read is rounded.
    """

    target: BitTarget | None
    format: Choice
    solver: Choice
    transform: Choice
    bits: Choice
    table_bits: int = 8
    keep: tuple[str, ...] = ()
    seconds: float | None = None
    activations: Choice = AS_THEY_COME

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        parts = {key: getattr(self, key) for key in ("format", "solver", "transform", "bits", "activations")}
        said: dict[str, Any] = {key: {"name": one.name, **one.options} for key, one in parts.items()}
        target = None if self.target is None else [self.target.unit, self.target.amount]
        return json.loads(json.dumps(said | {"to": target, "table_bits": self.table_bits, "keep": self.keep}))


@dataclass
class QuantiseOutcome:
    """What was made.

    bytes_before: of the weights, in the type that they had. bytes_after: of the file. weights: of the model. matrices: of the
    layers.
    done: what the engine did. before, after: None where they were not measured. seconds: of quantising, measuring left out.
    """

    bytes_before: int
    bytes_after: int
    weights: int
    matrices: dict[str, Encoded]
    done: Quantisation
    before: TextLikelihood | None = None
    after: TextLikelihood | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def code_bits(self) -> float:
        """Of a weight of the layers' quantised matrices, on average, without scales."""
        count = sum(one.rows * one.columns for one in self.done.matrices.values())
        bits = sum(one.format.bits * one.rows * one.columns for one in self.done.matrices.values())
        return bits / count

    @property
    def stored_bits(self) -> float:
        """The same with scales."""
        count = sum(one.rows * one.columns for one in self.done.matrices.values())
        return 8 * sum(one.nbytes for one in self.done.matrices.values()) / count


def plain_module(opened: Opened) -> LanguageModule:
    """The opened model in plain layers. Raises: UsageError where it is none that can be quantised."""
    model = opened.fold() if opened.fold is not None else opened.model
    if not isinstance(model, LanguageModule):
        raise UsageError(
            f"{opened.about.place} is of the kind '{opened.about.kind}', which cannot be quantised as one model"
        )
    if not any(True for _ in model.anatomy().matrices()):
        raise UsageError(f"{opened.about.place} is quantised already: quantise the model that it was made of")
    return model


def quantise_model(
    opened: Opened,
    model: LanguageModule,
    wanted: Wanted,
    calibration: Sequence[Batch],
    measured: Text | None,
    ledger: Ledger,
    work: Path,
    *,
    seconds: Seconds | None = None,
    fixed_seconds: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> QuantiseOutcome:
    """Quantise `model`, which is changed. What is finished is kept in the folder `work`, for another go.

    model: of `plain_module`.
    measured: text for the loss before; None: it is not measured.
    seconds: of a product, where the target is a time; fixed_seconds: of a token beside the matrices.
    Raises: as `engine.quantise_layers`; UsageError for a model that would not be kept, before anything is done.
    """
    require_kept(model)
    before = None
    if measured is not None:
        before = measure(model, opened, measured, ledger, "before")
    weights = {id(one): one for one in model.parameters()}
    count, size = sum(one.numel() for one in weights.values()), sum(one.nbytes for one in weights.values())
    form = wanted.format.build()
    limits: Limits | None = None
    if wanted.target is not None and wanted.target.whole is not None and wanted.bits.name == "uniform":
        form = form if form.bits == wanted.target.whole else form.at(wanted.target.whole)
    elif wanted.target is not None:
        limits = _limits(model, wanted, form, opened, seconds, fixed_seconds)
    parts = wanted.solver.build(), wanted.transform.build(), wanted.bits.build()
    activations = wanted.activations.build()
    recipe = Recipe(form, *parts, wanted.keep, wanted.table_bits, limits, activations)
    about = json.dumps([opened.about.digest, wanted.told(), _digest(calibration)], sort_keys=True)
    began = clock()
    end = began + (float("inf") if wanted.seconds is None else (1 - ENDS) * wanted.seconds)
    with ledger.clock(COMPUTE):
        done = quantise_layers(
            model,
            calibration,
            recipe,
            over=lambda: clock() >= end,
            hurry=lambda: clock() >= began + CHOOSING * (end - began),
            progress=QuantiseProgress(work, about),
        )
    ledger.charge(done.spent, CALIBRATION)
    ledger.write("quantise", **wanted.told())
    made = QuantiseOutcome(size, 0, count, {**done.tables, **done.matrices}, done, before, seconds=clock() - began)
    made.notes += done.notes
    return made


def _limits(
    model: LanguageModule, wanted: Wanted, form: Any, opened: Opened, seconds: Seconds | None, fixed_seconds: float
) -> Limits:
    """The limits of a target that is not met by one width alone."""
    target = wanted.target
    assert target is not None
    fixed = fixed_seconds
    if target.unit == "bytes":
        every = {f"{one.name}.weight" for one in model.anatomy().matrices()}
        rest = contents_of(model, {}, {"recipe": wanted.told(), "ends": opened.about.values.get("ends", [])})
        kept = {name: one for name, one in rest.rest.items() if name not in every}
        for name in table_names(model):
            kept.pop(f"{name}.weight", None)
        bare = overhead(QuantisedFile(rest.config, {}, kept, rest.about))
        fixed = bare + table_bytes(model, wanted.table_bits) + DESCRIBED * len(every)
    return limits_of(target, format=form, fixed=fixed, seconds=seconds)


def keep(
    opened: Opened, model: LanguageModule, made: QuantiseOutcome, wanted: Wanted, out: Path, ledger: Ledger
) -> None:
    """Write the folder `out`, whole or not at all."""
    about = {"recipe": wanted.told(), "notes": made.notes, "ends": list(opened.about.values.get("ends", []))}
    with atomic.directory(out) as half:
        contents = contents_of(model, made.matrices, about)
        made.bytes_after = write_folder(half, model, contents, opened.tokenizer, opened.about.chat_template)
        (half / LEDGER).write_text("".join(json.dumps(line) + "\n" for line in ledger.entries))


def measure(model: Any, opened: Opened, text: Text, ledger: Ledger, event: str) -> TextLikelihood:
    """The loss of a model on a text, charged to the ledger."""
    if opened.tokenizer is None:
        raise UsageError(f"{opened.about.place} has no tokenizer: text cannot be made its tokens")
    with ledger.clock(EVALUATE):
        found = likelihood(model.eval(), opened.tokenizer, text)
    ledger.charge(found.spent, EVALUATION)
    ledger.write(event, nats_per_token=found.nats_per_token.value)
    return found


def measure_kept(out: Path, text: Text, ledger: Ledger) -> tuple[TextLikelihood, tuple[str, ...]]:
    """(the loss of the model as it is opened from its folder, what its opener says)."""
    opened = QuantisedOpener().open(str(out), None)
    return measure(opened.model, opened, text, ledger, "after"), opened.about.notes


def clear(work: Path) -> None:
    """Remove what was kept for another go."""
    shutil.rmtree(work, ignore_errors=True)


def _digest(text: Sequence[Batch]) -> str:
    whole = hashlib.sha256()
    for batch in text:
        whole.update(batch.inputs.values.numpy().tobytes())
    return whole.hexdigest()
