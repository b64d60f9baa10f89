"""Post-training quantisation as an edit: its decision is the encoded matrices."""

import time
from typing import Annotated

import torch

from shoestring.config import Choice, Pick
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import NonNegative, method
from shoestring.quantise.engine import Recipe, quantise_layers
from shoestring.quantise.limits import limits_of
from shoestring.quantise.quantisation import decided, from_decided, install
from shoestring.quantise.target import BitTarget

FORMAT = Pick("quantise", "format", default="integer_groups")
SOLVER = Pick("quantise", "solver", default="gptq")
TRANSFORM = Pick("quantise", "transform", default="none")
BITS = Pick("quantise", "bits", default="uniform")
CHOOSING = 0.4
"""The share of the seconds that is for choosing a transform and bits."""


@method(
    "quantise",
    kind="edit",
    name="ptq",
    paper="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323",
    claim="trained models in few bits without training, with little loss at 4",
    cost="one pass over the calibration text, two of each layer, and what the solver takes",
)
class PTQ:
    """Round the matrices of the layers of a trained model: transform x bits x solver x format, layer after layer.

    The decision holds the codes and parameters of every matrix; applied, the layers are plain ones of the numbers that those
    stand for.

    format: of codes. solver: what decides each code. transform: what is done to the weights before. bits: which matrix gets how
    many.
    to: bits of a code on average, chosen by `bits`; 0: the format's own.
    keep: patterns of names of matrices that stay as they are.
    seconds: for deciding; the rest is rounded to the nearest. 0: no limit.
    """

    def __init__(
        self,
        *,
        format: Annotated[Choice, FORMAT] = FORMAT.choice(),  # noqa: B008 (frozen)
        solver: Annotated[Choice, SOLVER] = SOLVER.choice(),  # noqa: B008
        transform: Annotated[Choice, TRANSFORM] = TRANSFORM.choice(),  # noqa: B008
        bits: Annotated[Choice, BITS] = BITS.choice(),  # noqa: B008
        to: NonNegative = 0.0,
        keep: tuple[str, ...] = (),
        seconds: NonNegative = 0.0,
    ) -> None:
        limits = limits_of(BitTarget("bits", to)) if to else None
        parts = format.build(), solver.build(), transform.build(), bits.build()
        self.recipe = Recipe(*parts, keep=tuple(keep), limits=limits)
        self.seconds = seconds
        self.needs = frozenset({"text"} if self.recipe.reads else ())

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The encoded matrices. The model is changed on the way and put back: a copy of its weights is held meanwhile."""
        before = {name: value.clone() for name, value in model.state_dict().items()}
        began, seconds = time.monotonic(), self.seconds or float("inf")
        try:
            done = quantise_layers(
                model,
                evidence.text,
                self.recipe,
                over=lambda: time.monotonic() - began > seconds,
                hurry=lambda: time.monotonic() - began > CHOOSING * seconds,
            )
        finally:
            model.load_state_dict(before)
            model.changed()
        return Decision(*decided(done), done.spent)

    @torch.no_grad()
    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with the rounded weights. Raises: UsageError where it is another."""
        done = from_decided(decision.values, decision.tensors)
        install(model, done.changed, done.matrices)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        """How many matrices, and their bits."""
        done = from_decided(decision.values, decision.tensors)
        weights = sum(one.rows * one.columns for one in done.matrices.values())
        size = sum(one.nbytes for one in done.matrices.values())
        said = f"{len(done.matrices)} matrices of {weights:,} weights rounded to {8 * size / max(weights, 1):.2f} bits each"
        return "\n".join([f"{said} (scales and all)", *done.notes])
