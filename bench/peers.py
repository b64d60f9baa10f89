"""The sides of optimizers.py: Muon and SOAP by Shoestring, heavyball and pytorch_optimizer, one rule as near as it goes."""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.optim.adamw import AdamW
from shoestring.optim.composite import Composite
from shoestring.optim.muon import Muon
from shoestring.optim.partition import members
from shoestring.optim.soap import SOAP

Build = Callable[[list[Tensor], dict[str, Any]], torch.optim.Optimizer]
PACKAGES = {"heavyball": "heavyball", "pytorch_optimizer": "pytorch-optimizer"}
"""The peers, by the name they are imported by and the one they are installed by."""

MUON = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.01}
SOAP_OPTIONS = {"lr": 3e-3, "beta1": 0.95, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.01, "every": 10}
OPTIONS: dict[str, dict[str, Any]] = {"muon": MUON, "soap": SOAP_OPTIONS}
MAX_SIDE = 2048

DIFFERENCES = {
    ("muon", "pytorch_optimizer"): "orthogonalises in bfloat16 on any machine; eager",
    ("muon", "heavyball"): "five other Newton-Schulz polynomials, in bfloat16 with stochastic rounding; compiled",
    ("soap", "pytorch_optimizer"): "epsilon is added before the bias correction; a loop over matrices, eager",
    ("soap", "heavyball"): "factors are lifted off singularity at a refresh; compiled",
}
"""What remains different at the same hyper-parameters. Besides: every SOAP begins where eigh puts the null space of the
first factors, which is arbitrary, so that the first steps differ for matrices that are not square."""


def load(name: str) -> ModuleType:
    """A peer. Raises: UsageError, with the command that installs it, where it is absent."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UsageError(f"{name} is not installed: pip install {PACKAGES[name]}, or leave it out of --peers") from None


def versions(peers: list[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(PACKAGES[name]) for name in peers}


def _ours(method: str, polar: str, precision: str, compiled: bool) -> Build:
    def muon(matrices: list[Tensor], options: dict[str, Any]) -> torch.optim.Optimizer:
        fixed: dict[str, Any] = {"polar": polar, "precision": precision, "compile": compiled}
        return Muon(matrices, nesterov=True, scaling="spectral", **fixed, **options)

    def soap(matrices: list[Tensor], options: dict[str, Any]) -> torch.optim.Optimizer:
        return SOAP(matrices, max_side=MAX_SIDE, compile=compiled, **options)

    return muon if method == "muon" else soap


def _pytorch_optimizer(method: str) -> Build:
    library = load("pytorch_optimizer")

    def muon(matrices: list[Tensor], options: dict[str, Any]) -> torch.optim.Optimizer:
        # its scaling without `use_adjusted_lr` is ours of 'spectral'; its momentum is an average, as ours
        made: torch.optim.Optimizer = library.Muon([{"params": matrices, "use_muon": True, **options}])
        return made

    def soap(matrices: list[Tensor], options: dict[str, Any]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = library.SOAP(
            matrices,
            lr=options["lr"],
            betas=(options["beta1"], options["beta2"]),
            eps=options["epsilon"],
            weight_decay=options["weight_decay"],
            precondition_frequency=options["every"],
            max_precondition_dim=MAX_SIDE,
        )
        return made

    return muon if method == "muon" else soap


def _heavyball(method: str, compile_mode: str) -> Build:
    library = load("heavyball")
    library.utils.compile_mode = None if compile_mode == "none" else compile_mode

    def muon(matrices: list[Tensor], options: dict[str, Any]) -> torch.optim.Optimizer:
        # heavyball_momentum: g + mu m with m summed, which is Jordan's; its default adds an average to g unweighted
        made: torch.optim.Optimizer = library.Muon(
            matrices,
            lr=options["lr"],
            betas=(options["momentum"], 0.99),
            weight_decay=options["weight_decay"],
            nesterov=True,
            heavyball_momentum=True,
        )
        return made

    def soap(matrices: list[Tensor], options: dict[str, Any]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = library.SOAP(
            matrices,
            lr=options["lr"],
            betas=(options["beta1"], options["beta2"]),
            shampoo_beta=options["beta2"],
            eps=options["epsilon"],
            weight_decay=options["weight_decay"],
            precondition_frequency=options["every"],
            max_precond_dim=MAX_SIDE,
            merge_dims=False,
        )
        return made

    return muon if method == "muon" else soap


def builders(
    method: str, peers: list[str], *, polar: str, precision: str, compiled: bool, heavyball_compile: str
) -> dict[str, Build]:
    """What makes each side's optimiser of the matrices, ours first."""
    found = {"shoestring": _ours(method, polar, precision, compiled)}
    for name in peers:
        found[name] = _heavyball(method, heavyball_compile) if name == "heavyball" else _pytorch_optimizer(method)
    return found


@dataclass(frozen=True)
class Optimizers:
    """matrices: the one under test. rest: AdamW for all other parameters, the same on every side. both: as one."""

    matrices: torch.optim.Optimizer
    rest: AdamW
    both: Composite


def optimizers(model: nn.Module, build: Build, options: dict[str, Any], lr: float) -> Optimizers:
    """The optimisers of one side. lr: of AdamW, which decays no vector."""
    found = members(model)
    matrices: list[Tensor] = [member.parameter for member in found if member.role == "matrix"]
    vectors: list[Tensor] = [member.parameter for member in found if member.role == "vector"]
    others: list[Tensor] = [member.parameter for member in found if member.role in ("embedding", "head")]
    rest = AdamW([{"params": others}, {"params": vectors, "weight_decay": 0.0}], lr=lr)
    made = build(matrices, options)
    return Optimizers(made, rest, Composite(made, rest))
