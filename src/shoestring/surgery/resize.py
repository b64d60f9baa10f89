"""The only surgeon: makes a model smaller or larger along its axes, in every weight that they slice."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shoestring.contract.anatomy import Anatomy, Axis, Slice
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError


class Cut(NamedTuple):
    """What stays of an axis. keep: its indices, in the order in which they are to stand. repeats: an index may stand again."""

    axis: Axis
    keep: Sequence[int]
    repeats: bool = False


def resize(model: LanguageModule, *cuts: Cut) -> None:
    """Leave some indices of some axes of a model. The weights are cut in place of the old ones.

    cuts: all at once, as an axis may say where another begins. Deterministic, needs no data, and works on tensors without values.
    Raises: UsageError where an index is not there, or given twice, or none is left.
    """
    by_weight: dict[tuple[str, int], list[tuple[Slice, Cut]]] = {}
    for cut in cuts:
        size, keep = cut.axis.size, cut.keep
        twice = len(set(keep)) != len(keep) and not cut.repeats
        if not keep or twice or not all(0 <= index < size for index in keep):
            where = "" if cut.axis.layer is None else f" of layer {cut.axis.layer}"
            raise UsageError(
                f"of the axis '{cut.axis.kind}'{where}, numbers from 0 to {size - 1} can stay, each once, and at least one"
            )
        _require_runs(cut)
        for one in cut.axis.slices:
            by_weight.setdefault((one.name, one.dim), []).append((one, cut))
    for name, _ in by_weight:  # before anything is cut
        owner, attribute = _owner(model, name)
        if attribute not in owner._parameters and attribute not in owner._buffers:
            raise UsageError(
                f"{name} cannot be cut: a {type(owner).__name__} stands there since an earlier edit. Cut first, or fold that edit"
            )
    for (name, dim), parts in by_weight.items():
        owner, attribute = _owner(model, name)
        old: Tensor = getattr(owner, attribute)
        new = old.detach().index_select(dim, kept_places(old.shape[dim], parts).to(old.device))
        if isinstance(old, nn.Parameter):
            made = nn.Parameter(new, requires_grad=old.requires_grad)
            for mark, value in vars(old).items():  # a role
                setattr(made, mark, value)
            setattr(owner, attribute, made)
        else:
            setattr(owner, attribute, new)
        _tell(owner)
    model.anatomy().resized()
    model.changed()


def _require_runs(cut: Cut) -> None:
    """Raises: UsageError where the parts of an axis would not keep as many indices each, in the order of the parts."""
    runs = cut.axis.runs
    length, own = cut.axis.size // runs, len(cut.keep) // runs
    if len(cut.keep) % runs or any(index // length != place // own for place, index in enumerate(cut.keep)):
        raise UsageError(
            f"of the axis '{cut.axis.kind}' of layer {cut.axis.layer}, each of its {runs} groups keeps as many of its {length}, in "
            "the order of the groups"
        )


def kept_places(size: int, parts: Sequence[tuple[Slice, Cut]]) -> Tensor:
    """[n] int64: the places of a dimension of `size` that stay. What no slice covers stays."""
    found, done = [], 0
    for one, cut in sorted(parts, key=lambda part: part[0].start):
        chosen = torch.tensor(list(cut.keep), dtype=torch.int64)
        found.append(torch.arange(done, one.start))
        found.append((one.start + chosen[:, None] * one.unit + torch.arange(one.unit)).flatten())
        done = one.start + cut.axis.size * one.unit
    found.append(torch.arange(done, size))
    return torch.cat(found)


def head_groups(anatomy: Anatomy, layer: int, groups: Sequence[int]) -> list[Cut]:
    """What to cut so that these key and value heads of a layer stay, each with the query heads that share it."""
    queries = _of_layer(anatomy, "head", layer)
    shared = _of_layer(anatomy, "key_value_head", layer)
    heads = [group * queries.group + each for group in groups for each in range(queries.group)]
    return [Cut(queries, heads), Cut(shared, groups)]


def _of_layer(anatomy: Anatomy, kind: str, layer: int) -> Axis:
    found = [axis for axis in anatomy.axes(kind) if axis.layer == layer]
    if not found:
        raise UsageError(f"layer {layer} of this model has no axis '{kind}'")
    return found[0]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    prefix, _, attribute = name.rpartition(".")
    return model.get_submodule(prefix), attribute


def _tell(module: nn.Module) -> None:
    """Have a plain module's own sizes say what its weight has."""
    sized: Any = module
    if isinstance(module, nn.Linear):
        sized.out_features, sized.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        sized.num_embeddings, sized.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        sized.normalized_shape = tuple(module.weight.shape)
