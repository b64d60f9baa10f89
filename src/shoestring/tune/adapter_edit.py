"""What every edit that adds adapters shares: it chooses matrices, places a layer at each, and trains these alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError, did_you_mean
from shoestring.tune import matrix
from shoestring.tune.adapted import Adapted
from shoestring.tune.peft_adapter import MatrixPart, PeftAdapter

CHOSEN = "matrices"
"""The key of a decision that names the matrices."""


class AdapterEdit(ABC):
    """Adapters beside matrices of a model's layers. All else is frozen.

    A subclass says what the first tensors of an adapter are (`begin`) and makes the layer (`place`).

    targets: patterns of the names of the matrices ('*.qkv'); empty: those of `chosen_by_itself`.
    """

    needs: frozenset[str] = frozenset()
    divides = True
    name: ClassVar[str]
    """The method's."""
    kind: ClassVar[type[Adapted]]
    """Of its layers."""
    rate: ClassVar[float] = 1e-3
    """A learning rate of AdamW to begin with."""
    peft_types: ClassVar[tuple[str, ...]] = ()
    """The kinds of adapters, in peft's words, that are of this method."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = tuple(targets)

    @abstractmethod
    def begin(self, base: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """The first tensors of the adapter of a matrix, by name: those that are drawn at random. The rest `place` makes."""

    @abstractmethod
    def place(self, base: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Adapted:
        """The layer in the place of `base`.

        tensors: by name, of a decision, on the device of `base`; more than `begin` made where the adapter was trained elsewhere.
        values: of the decision.
        """

    def values(self) -> dict[str, Any]:
        """What a decision says beside the tensors, as JSON values."""
        return {}

    def chosen_by_itself(self, model: LanguageModule, names: Sequence[str]) -> list[str]:
        """The matrices that are adapted where `targets` says nothing: all of the layers."""
        return list(names)

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Which matrices, and the first tensors of each. Raises: UsageError for a pattern that names none."""
        names = self._chosen(model)
        generator, tensors = torch.Generator().manual_seed(evidence.seed), dict[str, Tensor]()
        for name in names:
            try:
                own = self.begin(model.get_submodule(name), generator)
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from None
            tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
        return Decision({CHOSEN: names, **self.values()}, tensors)

    def layers(self, model: LanguageModule, decision: Decision) -> dict[str, Adapted]:
        """The adapter of each matrix that is chosen, by the matrix's name, in float32. The model stays as it is."""
        own: dict[str, dict[str, Tensor]] = {name: {} for name in decision.values[CHOSEN]}
        for full, tensor in decision.tensors.items():
            name, _, key = full.rpartition(".")
            own[name][key] = tensor
        made = dict[str, Adapted]()
        for name, tensors in own.items():
            base = model.get_submodule(name)
            device = matrix.device_of(base)
            moved = {key: tensor.to(device, copy=True) for key, tensor in tensors.items()}
            made[name] = self.place(base, moved, decision.values)
        return made

    def trained(self, decision: Decision, weights: Mapping[str, Tensor]) -> Decision:
        """The decision that places trained adapters again.

        decision: that they were made by. weights: of the model that has them, by name; those of its base may be absent.
        """
        tensors = dict(decision.tensors)
        for name in decision.values[CHOSEN]:
            for key in self.kind.roles:
                if (full := f"{name}.{key}") in weights:
                    tensors[full] = weights[full].detach()
        return Decision(dict(decision.values), tensors)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with adapters, in float32, and every other parameter frozen."""
        model.requires_grad_(False)
        for name, layer in self.layers(model, decision).items():
            model.set_submodule(name, layer)
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Each adapter merged with the matrix that it stands beside. Raises: UsageError where no one matrix is the same."""
        found = {name: module for name, module in model.named_modules() if isinstance(module, self.kind)}
        for name, module in found.items():
            if not any(
                other != name and name.startswith(f"{other}.") for other in found
            ):  # the outermost take the inner along
                model.set_submodule(name, module.merged())
        model.changed()
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return f"{self.name}: {self.shape()} on {len(decision.values[CHOSEN])} matrices: {trained:,} parameters are trained"

    @classmethod
    def reads(cls, settings: Mapping[str, Any]) -> bool:
        """Whether an adapter of one of `peft_types` with these settings is of this method."""
        return True

    @classmethod
    def imported(
        cls, adapter: PeftAdapter, model: LanguageModule, parts: Sequence[MatrixPart]
    ) -> "tuple[AdapterEdit, Decision]":
        """The edit and the decision that an adapter of peft is. Raises: UsageError for what is not known here."""
        raise UsageError(f"adapters of {cls.name} are not read from a file of peft")

    def exported(self, model: LanguageModule, values: Mapping[str, Any], parts: Sequence[MatrixPart]) -> PeftAdapter:
        """The adapters of a model as peft has them, all that a file's settings say but the name of the base.

        values: of the decision that made them. Raises: UsageError where peft has none of this method.
        """
        raise UsageError(f"peft has no adapters as those of {self.name}: they are kept in the run's folder")

    def shape(self) -> str:
        """The adapter's size in words: 'adapters of rank 8'."""
        return "adapters"

    def _chosen(self, model: LanguageModule) -> list[str]:
        names = matrices(model)
        if not names:
            raise UsageError("this model has no linear layers that an adapter can stand beside")
        for pattern in self.targets:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"targets = '{pattern}' names no matrix: {did_you_mean(pattern, names)}")
        if not self.targets:
            return self.chosen_by_itself(model, names)
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.targets)]


def matrices(model: LanguageModule) -> list[str]:
    """The names of the matrices of a model's layers, in order, whatever holds them; an adapted one is one matrix."""
    found = list[str]()
    for layer in model.anatomy().layers:
        for name, module in model.get_submodule(layer).named_modules():
            full = f"{layer}.{name}"
            if matrix.is_matrix(module) and not any(full.startswith(f"{other}.") for other in found[-1:]):
                found.append(full)
    return found


WRITERS = ("output", "o_proj", "down_proj", "out_proj", "c_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2")
"""Last names of matrices that write to the residual stream, in the models of transformers and here."""


def writers(names: Sequence[str]) -> list[str]:
    """Those of the matrices that write to the residual stream. Raises: UsageError where none has a known name."""
    found = [name for name in names if name.rpartition(".")[2] in WRITERS]
    if not found:
        raise UsageError(
            f"which matrices write to the residual stream is not known here: name them with targets, of {names[:8]}"
        )
    return found
