"""Which matrices of a native model read what which norm has made, and which of their rows are a branch."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError

PARTS = (("token_norm", "token_mixer"), ("channel_norm", "channel_mixer"))


class NormReader(NamedTuple):
    """A matrix that reads what a norm made. starts: the first row of each branch."""

    norm: str
    name: str
    starts: tuple[int, ...]


def norms_of(model: LanguageModule) -> list[str]:
    """The names of the norms that a part of a layer reads."""
    known = dict(model.named_modules())
    return [f"{layer}.{norm}" for layer in model.anatomy().layers for norm, _ in PARTS if f"{layer}.{norm}" in known]


def norm_readers(model: LanguageModule, edit: str) -> Iterator[NormReader]:
    """The matrices that read what the norms of the layers made.

    edit: its name, for messages. Raises: UsageError where that is not known, or something else reads a norm, or norms have a bias.
    """
    anatomy = model.anatomy()
    width = next(iter(anatomy.axes("width")), None)
    if width is None or not norms_of(model):
        raise UsageError(f"{edit} is for native models: which matrix reads which norm of a wrapped one is not known")
    starts: dict[str, set[int]] = {}
    for kind in ("head", "key_value_head", "hidden"):
        for axis in anatomy.axes(kind):
            for one in axis.slices:
                if one.dim == 0:
                    starts.setdefault(one.name, set()).add(one.start)
    for layer in anatomy.layers:
        for norm, mixer in PARTS:
            if {name for name, _ in model.get_submodule(f"{layer}.{norm}").named_parameters()} != {"weight"}:
                raise UsageError(f"{edit}: {layer}.{norm} has more than a scale: choose rmsnorm")
            for one in width.slices:
                owner = one.name.rpartition(".")[0]
                if not one.name.startswith(f"{layer}.{mixer}.") or one.dim == 0:
                    continue
                if type(model.get_submodule(owner)) is not nn.Linear:
                    if model.get_parameter(one.name).ndim > 2 and one.dim == 1:
                        continue  # the outputs of stacked experts
                    raise UsageError(f"{edit}: {owner} is no plain linear layer, and reads a norm")
                yield NormReader(f"{layer}.{norm}", owner, tuple(sorted(starts.get(one.name, set()) | {0})))
