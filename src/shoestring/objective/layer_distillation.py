"""What objectives share that learn from what a teacher's layers compute."""

import abc
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.anatomy import Anatomy, Axis
from shoestring.contract.batch import Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel, LanguageModule
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.objective import teachers as taught
from shoestring.objective.teachers import TEACHER, TeacherAnswer
from shoestring.objective.token_distillation import TokenDistillation, kullback_leibler, weights_of


class Match(NamedTuple):
    """A module of the model, and the one of the teacher that it is to be like. group: of matches that are worked on together."""

    own: str
    theirs: str
    group: int = 0


class LayerDistillation(TokenDistillation):
    """A loss of what layers compute, beside those of the next token:

        L = weight D + logits KL(p || q) + text CE

    A method says which modules are compared (`matches`) and how (`distance`).

    teacher: the place of a model with the same tokens; '': the base of the run.
    weight, logits, text: of the three, 0 or more; what is 0 is not computed.
    """

    def __init__(self, teacher: str, *, weight: float, logits: float, text: float) -> None:
        super().__init__((teacher,), weight=weight, temperature=1.0)
        self.logits, self.text = logits, text

    @abc.abstractmethod
    def matches(self, own: Anatomy, theirs: Anatomy) -> Sequence[Match]:
        """Which modules are compared. Raises: UsageError where the models do not fit."""

    @abc.abstractmethod
    def distance(
        self, matches: Sequence[Match], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, int, int]:
        """(the mean distance, operations for the model with its backward pass, operations for the teacher).

        own, theirs: outputs of the modules by name, [B, T, features].
        """

    def divergence(self, taught: Tensor, own: Tensor) -> Tensor:
        """As `TokenDistillation.divergence`."""
        return kullback_leibler(taught, own)

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError where a model does not tell its parts, or they do not fit."""
        (teacher,) = self._require(model).models
        if not isinstance(model, LanguageModule) or not isinstance(teacher, LanguageModule):
            raise UsageError("an objective that compares layers needs a teacher and a model that tell their parts")
        matches = self.matches(model.anatomy(), teacher.anatomy()) if self.weight else ()
        with torch.no_grad():
            known = teacher.read(batch.inputs, tap=tuple(dict.fromkeys(one.theirs for one in matches)))
        ours = model.read(batch.inputs, tap=tuple(dict.fromkeys(one.own for one in matches)))
        places = batch.targets.numel()
        shape = Shape(batch.rows, batch.inputs.length, outputs=0, backward=True)
        charge = Charge(flops=model.cost(shape).flops)
        asked = Charge(flops=known.cost.flops, read=places, calls=1)
        mean, parts = ours.hidden.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
        if self.logits or self.text:
            answer = TeacherAnswer([known], None, 1.0, asked) if self.logits else None
            divergence, entropy = self._means(ours, answer, batch, max(1, taught.LOGITS // model.about.vocabulary))
            mean = mean + self.logits * divergence + self.text * entropy
            parts |= {"divergence": divergence.detach(), "next_token": entropy.detach()}
            full = model.cost(shape._replace(outputs=None)).flops
            charge, asked = Charge(flops=full + ours.head.flops(places)), asked if answer is None else answer.spent
        if matches:
            found, own, theirs = self.distance(matches, ours.tapped, known.tapped, batch)
            mean = mean + self.weight * found
            parts["layers"] = found.detach()
            charge, asked = charge + Charge(flops=own), asked + Charge(flops=theirs)
        return Loss(mean, {MODEL: charge, TEACHER: asked}, parts, ours.auxiliary())


def matched_layers(own: int, theirs: int) -> list[int]:
    """Of each of a model's layers, the teacher's that it is to be like: evenly, the last like the last."""
    return [round((layer + 1) * theirs / own) - 1 for layer in range(own)]


def weighted_mean(values: Tensor, batch: Batch) -> Tensor:
    """Of values [B T], over the places that count."""
    weights = weights_of(batch)
    return (values.flatten() * weights).sum() / weights.sum().clamp_min(1e-12)


class Rows(NamedTuple):
    """Rows of a matrix: the output of module `name`, from `start` to `stop`."""

    name: str
    start: int
    stop: int

    def of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """[..., stop - start], of what the module computed."""
        return outputs[self.name][..., self.start : self.stop]


def written_by(axes: Sequence[Axis]) -> dict[int, list[Rows]]:
    """What makes the features of axes, by layer: of a matrix with several parts, each part by itself."""
    found: dict[int, list[Rows]] = {}
    for axis in axes:
        for one in axis.slices:
            if one.dim == 0 and one.name.endswith(".weight") and axis.layer is not None:
                stop = one.start + axis.size * one.unit
                found.setdefault(axis.layer, []).append(Rows(one.name.removesuffix(".weight"), one.start, stop))
    return found
