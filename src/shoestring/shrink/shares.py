"""How much of each axis, or how many layers, may stay so that a model comes down to a target."""

import copy
from collections.abc import Callable, Sequence

import torch

from shoestring.budget.units import show
from shoestring.errors import UsageError
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.shrink.target import Size, Target, Unit, size_of
from shoestring.surgery.pruning import cut, first_of, kept_heads, kept_of, kept_shared, width_multiple

STEPS = 96
"""The shares that are tried are multiples of one over this."""

KINDS = {
    "hidden": "hidden",
    "heads": "key_value_head",
    "width": "width",
    "expert_hidden": "expert_hidden",
    "ssm_heads": "head",
    "ssm_channels": "ssm_channel",
    "ssm_state": "ssm_state",
}
"""The options of a method of pruning, and the kind of axis that each is a share of."""

TRIES = 4
"""How often a model is cut and timed for a target in seconds."""

CLOSE = 0.03
"""By how much a measured time may differ from the target to end the search."""


def cut_to(model: Transformer, axes: Sequence[str], share: float, multiple: int) -> Transformer:
    """The model with the first indices of each of these axes, as many as a method of pruning leaves; changed in place."""
    for option, kind in KINDS.items():
        if option not in axes:
            continue
        of = {"heads": 1, "ssm_heads": 1, "width": width_multiple(kept_heads(model, 1.0), multiple)}.get(
            option, multiple
        )
        if kind == "expert_hidden":
            for axis in model.anatomy().axes("shared_hidden"):
                cut(model, axis.kind, axis.layer, range(kept_shared(model.anatomy(), axis, share, of)))
        able = {axis.layer for axis in model.anatomy().axes("ssm_channel")}
        for axis in model.anatomy().axes(kind):
            if kind != "head" or axis.layer in able:
                cut(model, kind, axis.layer, first_of(axis, kept_of(axis, share, of)))
    return model


def outline_of(model: Transformer) -> Transformer:
    """A model of the same shapes without values."""
    with outline():
        return Transformer(model.config)


def share_for(
    model: Transformer,
    target: Target,
    axes: Sequence[str],
    multiple: int,
    *,
    whole: Size,
    measure: Callable[[Transformer], Size],
) -> tuple[float, Size]:
    """(the largest share of these axes that reaches the target, the size of a model cut so).

    whole: the size of the model as it is. measure: the size of a model, its seconds among it.
    Raises: UsageError where the model is small enough already, and where no share is: with the least that there is.
    """
    wanted, unit = _wanted(target, whole), target.unit
    if unit == "seconds":
        return _by_time(model, wanted, axes, multiple, whole, measure)

    def at(place: int) -> Size:
        return size_of(cut_to(outline_of(model), axes, place / STEPS, multiple))

    if at(1).of(unit) > wanted:
        least = _said(unit, at(1).of(unit))
        raise UsageError(
            f"{', '.join(axes)} alone do not reach {_said(unit, wanted)}: the least is {least}; drop layers too"
        )
    low, high = 1, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        if at(middle).of(unit) <= wanted:
            low = middle
        else:
            high = middle
    return low / STEPS, at(low)


def layers_for(
    model: Transformer, target: Target, *, whole: Size, measure: Callable[[Transformer], Size]
) -> tuple[int, Size]:
    """(the most layers with which the model reaches the target, its size with so many). As `share_for`."""
    wanted, unit, total = _wanted(target, whole), target.unit, len(model.blocks)

    def at(stay: int) -> Size:
        made = copy.deepcopy(model) if unit == "seconds" else outline_of(model)
        made.anatomy().keep_layers(range(stay))
        return measure(made) if unit == "seconds" else size_of(made)

    low, high, least, most = 1, total, at(1), whole
    if least.of(unit) > wanted:
        raise UsageError(
            f"layers alone do not reach {_said(unit, wanted)}: the least is {_said(unit, least.of(unit))}; cut widths too"
        )
    while high - low > 1:  # what a model takes grows evenly with its layers, so two or three are tried
        part = (wanted - least.of(unit)) / max(most.of(unit) - least.of(unit), 1e-12)
        stay = min(max(low + int(part * (high - low)), low + 1), high - 1)
        found = at(stay)
        if found.of(unit) <= wanted:
            low, least = stay, found
        else:
            high, most = stay, found
    return low, least


def _wanted(target: Target, whole: Size) -> float:
    """The amount of a target. Raises: UsageError where the model has no more than that."""
    wanted, unit = target.of(whole), target.unit
    if whole.of(unit) <= wanted:
        raise UsageError(f"the model has {_said(unit, whole.of(unit))} already: a target below that is needed")
    return wanted


def _by_time(
    model: Transformer,
    wanted: float,
    axes: Sequence[str],
    multiple: int,
    whole: Size,
    measure: Callable[[Transformer], Size],
) -> tuple[float, Size]:
    """As `share_for`, of seconds: models are cut and timed, and the share is looked for between those known."""

    def at(share: float) -> Size:
        with torch.no_grad():
            return measure(cut_to(copy.deepcopy(model), axes, share, multiple))

    low, least = 1 / STEPS, at(1 / STEPS)
    if least.of("seconds") > wanted:
        raise UsageError(
            f"{', '.join(axes)} alone do not reach {_said('seconds', wanted)}: the least is "
            f"{_said('seconds', least.of('seconds'))}; drop layers too"
        )
    high, most = 1.0, whole
    best = low, least
    for _ in range(TRIES):
        fast, slow = least.of("seconds"), most.of("seconds")
        part = (wanted - fast) / max(slow - fast, 1e-12)
        share = min(max(low + part * (high - low), low + 1 / STEPS), high - 1 / STEPS)
        if not low < share < high:
            break
        found = at(share)
        if found.of("seconds") <= wanted:
            low, least = share, found
            best = share, found
            if found.of("seconds") >= wanted * (1 - CLOSE):
                break
        else:
            high, most = share, found
    return best


def _said(unit: Unit, amount: float) -> str:
    if unit == "seconds":
        return f"{1e3 * amount:.2f} ms a token"
    if unit == "bytes":
        return show("bytes", int(amount))
    return f"{amount:,.0f} parameters" if unit == "parameters" else f"{show('flops', amount)} a token"
