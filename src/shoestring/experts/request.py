"""What a set of experts is asked for, laid over the plan for its budget."""

from dataclasses import replace

from shoestring.budget.machine import cache_folder
from shoestring.config import Tree, as_flag, build, merge, tree
from shoestring.data.dataset import require
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError
from shoestring.experts.allocation import scaled
from shoestring.experts.config import ExpertsConfig
from shoestring.experts.worker import machine
from shoestring.launch.request import DEFAULT_BUDGET, TrainingRequest, planned
from shoestring.train.config import RunConfig
from shoestring.train.execution import require_device


def planned_experts(asked: Tree, own: Tree | None = None, *, dense: bool = False) -> ExpertsConfig:
    """The complete configuration of a set of experts. A recipe that leaves the model open gets one planned for an expert's
    part of the budget, and its dense run one for the whole.

    asked: plain values, as in a recipe; the section 'experts' is of the experts themselves.
    own: more of that section, laid over it.
    dense: whether one model is trained on everything too, with as much budget again.
    Raises: UsageError.
    """
    asked = dict(asked)
    section = merge(asked.pop("experts", {}), own or {})
    asked.setdefault("budget", DEFAULT_BUDGET)
    if "run" in section or "dense" in section:
        raise UsageError("the [experts] section holds neither a run nor a dense one: those are the rest of the recipe")
    first = build(RunConfig, merge({"model": {}}, asked), as_flag)
    require_device(first.execution)
    # refused before any work where it can be; sizes need the width of a head, which may be planned
    sized = {key: value for key, value in section.items() if key != "sizes"}
    early = build(ExpertsConfig, sized | {"run": tree(first)}, _flag)

    request = TrainingRequest(asked, first.budget)
    dataset = prepare(request.data(), cache_folder())
    require(dataset, int(asked.get("model", {}).get("context", 1)))
    part = replace(request, budget=scaled(first.budget, (1 - early.seed_share) / early.count))
    _, run = planned(part, machine(), dataset, 0.0)
    whole = {"dense": tree(planned(request, machine(), dataset, 0.0)[1])} if dense else {}
    return build(ExpertsConfig, {**section, "run": tree(run), **whole}, _flag)


def _flag(key: str) -> str:
    """The flag of a key of the experts' configuration, in which `run` holds the other sections of a recipe."""
    return as_flag(key.removeprefix("run.")) if key.startswith("run.") else as_flag(f"experts.{key}")
