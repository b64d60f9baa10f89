"""A run's model lowered to its number format, and when it begins to be."""

from dataclasses import replace
from typing import Any

from shoestring.contract.cost import Shape
from shoestring.lowbit.convert import grouped, lower, lowered, lowered_layers
from shoestring.model.transformer import Transformer
from shoestring.schedule.progress import Schedule
from shoestring.schedule.quantise.rule import Extent
from shoestring.train.config import RunConfig


def lower_model(config: RunConfig, model: Transformer) -> str:
    """Lower `model`, in place, as the configuration says. Returns which layers were and which were not, in lines; nothing for a
    run in full precision.

    Raises: UsageError where it cannot be.
    """
    if not config.lowbit.on:
        return ""
    chosen, beside = config.lowbit.format, config.lowbit.beside
    options = ", ".join(f"{key} = {value}" for key, value in chosen.options.items())
    said = lower(model, chosen.build(), beside.activations, beside.keep).describe()
    rounded = "" if beside.activations == "none" else f", activations {beside.activations}"
    return f"{chosen.name} weights ({options}){rounded}: {said}"


def stated(model: Transformer) -> dict[str, Any]:
    """What is quantised, for the summary of a run: empty for a model in full precision.

    lowered, kept: the names of the matrices that are and of those that stay in higher precision, as the run said them.
    """
    first = next(lowered_layers(model), None)
    if first is None:
        return {}
    found = lowered(model)
    about = {"format": str(first.format), "activations": first.activations}
    counts = {"matrices": len(found.lowered), "weights": found.weights}
    return {"lowbit": {**about, **counts, "lowered": grouped(found.lowered), "kept": grouped(found.kept)}}


def with_planned_tokens(config: RunConfig, tokens: float) -> RunConfig:
    """The configuration, complete: a rule that must know the tokens of the run, and was not told, is told those planned."""
    if config.quantise.options.get("tokens") != 0:
        return config
    return replace(config, quantise=config.quantise.with_options(tokens=tokens))


def join_schedule(config: RunConfig, model: Transformer) -> tuple[Schedule, float, str]:
    """(the schedule of the run, the share of the budget from which on its weights are quantised, that share in a line).

    Raises: UsageError where the rule must know what the configuration does not say.
    """
    schedule: Schedule = config.schedule.build()
    if not config.lowbit.on:
        return schedule, 0.0, ""
    rule = config.quantise.build()
    start = rule.start(_extent(config, model))
    return rule.joined(schedule, start), start, _said(config, start)


def _extent(config: RunConfig, model: Transformer) -> Extent:
    budget, context = config.budget, config.model.context
    tokens = budget.tokens or 0.0
    if not tokens and budget.flops:
        tokens = budget.flops * context / model.cost(Shape(1, context, backward=True)).flops
    return Extent(sum(p.numel() for p in model.parameters()), tokens, config.lowbit.format.build().bits)


def _said(config: RunConfig, start: float) -> str:
    if start == 0:
        return "quantised from the first step on"
    fused = ", while the learning rate decays" if config.quantise.options.get("fused") else ""
    return f"quantised over the last {1 - start:.1%} of the budget{fused}; in full precision before that"
