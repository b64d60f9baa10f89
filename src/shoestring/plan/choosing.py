"""The size of a planned model: by rule, or by a law that a ladder of runs was fitted with."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shoestring.budget.units import show
from shoestring.config import build, merge
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.plan import rules
from shoestring.plan.learned import Learned
from shoestring.plan.means import Means, PlannedSize
from shoestring.plan.search import Search, search, told_apart
from shoestring.plan.sizes import training_memory

FARTHEST = 10.0
"""How many times larger than the largest run of a ladder, or smaller than its smallest, a size may be that its law chooses."""


def _model(shape: rules.Rung, vocabulary: int, context: int, fixed: Mapping[str, Any]) -> ModelConfig:
    planned = {
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.width // shape.head_width,
        "vocabulary": vocabulary,
        "context": context,
    }
    if "width" in fixed and "heads" not in fixed:
        planned["heads"] = max(1, int(fixed["width"]) // 64)
    return build(ModelConfig, merge(planned, fixed))


class UseLimit(NamedTuple):
    """The most that a model may take while it is used. most: bytes. takes: what a model of some shape does."""

    most: float
    takes: Callable[[ModelConfig], float]

    def allows(self, model: ModelConfig) -> bool:
        """Whether it fits."""
        return self.takes(model) <= self.most


def size_by_rule(
    means: Means,
    corpus_tokens: int,
    vocabulary: int,
    fixed: Mapping[str, Any],
    limit: float,
    use: UseLimit | None = None,
) -> tuple[PlannedSize, str, str]:
    """The largest rung with tokens enough. Returns (size, binding resource, reason).

    use: what the model may take in use. Raises: UsageError where the smallest does not fit that.
    """
    chosen: tuple[PlannedSize, str, str] | None = None
    for shape in rules.LADDER:
        context = rules.context_for(chosen[0].tokens if chosen else 0.0)
        model = _model(shape, vocabulary, context, fixed)
        size, binding = means.size(model)
        tokens, count = size.tokens, size.parameters
        reason = (
            f"the largest rung that still sees {rules.TOKENS_PER_PARAMETER:g} tokens a parameter: "
            f"{count / 1e6:.2f} M parameters, {tokens / 1e6:.2f} M tokens"
        )
        epochs = tokens / corpus_tokens
        if chosen is not None and training_memory(model, count, model.context, size.trained) > limit:
            chosen = (chosen[0], "memory", f"the largest rung that fits in {show('bytes', limit)} of memory")
            break
        if use is not None and not use.allows(model):
            if chosen is None:
                raise UsageError(
                    f"{model.layers} layers of {model.width} with a vocabulary of {model.vocabulary} take "
                    f"{show('bytes', use.takes(model))} in use, and {show('bytes', use.most)} are allowed: give "
                    "--model.embedding nano, a smaller --data.vocabulary or a shorter --model.context"
                )
            return chosen[0], chosen[1], f"the largest rung that fits in {show('bytes', use.most)} in use"
        repeated = chosen is not None and chosen[0].tokens / corpus_tokens > rules.MOST_EPOCHS
        if chosen is not None and repeated and count > rules.MOST_WEIGHTS * corpus_tokens / rules.TOKENS_PER_PARAMETER:
            smaller, epochs = chosen[0].parameters / 1e6, chosen[0].tokens / corpus_tokens
            reason = f"the largest rung whose weights {show('tokens', corpus_tokens)} of text can teach"
            chosen = (chosen[0], chosen[1], f"{reason}: {smaller:.2f} M parameters, {epochs:.1f} epochs")
            break
        if chosen is None or tokens >= rules.TOKENS_PER_PARAMETER * count:
            if tokens < rules.TOKENS_PER_PARAMETER * count:
                reason = f"the smallest rung: {count / 1e6:.2f} M parameters, {tokens / 1e6:.2f} M tokens"
            chosen = (size, binding, reason)
        elif repeated:
            reason = f"a smaller one would pass over the corpus more than {rules.MOST_EPOCHS:g} times"
            chosen = (size, binding, f"{reason}: {count / 1e6:.2f} M parameters, {epochs:.1f} epochs")
        else:
            break
        if set(fixed) >= {"layers", "width"}:
            given = f"the shape of {fixed['base']}" if fixed.get("base") else "as given"
            chosen = (size, binding, f"{given}: {count / 1e6:.2f} M parameters, {tokens / 1e6:.2f} M tokens")
            break
    assert chosen is not None
    return chosen


def size_by_law(
    means: Means,
    learned: Learned,
    corpus_tokens: int,
    vocabulary: int,
    fixed: Mapping[str, Any],
    limit: float,
    use: UseLimit | None = None,
) -> tuple[PlannedSize, str, str, Search] | None:
    """The rung of the lowest loss that the learned law expects. Returns (size, binding resource, reason, all rungs); None where
    no rung is near enough to the ladder's, or none is within the limits."""
    sizes: dict[str, tuple[PlannedSize, str]] = {}
    options = []
    low, high = learned.sizes[0] / FARTHEST, learned.sizes[1] * FARTHEST
    context = rules.context_for(0.0)
    for shape in rules.LADDER:
        size, binding = means.size(_model(shape, vocabulary, context, fixed))
        wanted = rules.context_for(size.tokens)
        if wanted != context and "context" not in fixed:
            size, binding = means.size(_model(shape, vocabulary, wanted, fixed))
        if not low <= size.parameters <= high or (use is not None and not use.allows(size.model)):
            continue
        held = training_memory(size.model, size.parameters, size.model.context, size.trained)
        option = size.option(binding, held, means.seconds_spent)
        if option.name not in sizes:
            sizes[option.name] = size, binding
            options.append(option)
    found = search(options, learned.law, limits={"memory": limit}, unique=corpus_tokens)
    if not found.found:
        return None
    best = found.best
    size, binding = sizes[best.option.name]
    said = best.expected
    loss = f" {said.value:.3f} ({said.low:.3f} to {said.high:.3f})" if learned.own else ""
    doubt = "" if told_apart(found.found) else ", not told apart from the next"
    reason = (
        f"the lowest loss expected{loss} by {learned.describe()}{doubt}: {size.parameters / 1e6:.2f} M parameters, "
        f"{size.tokens / 1e6:.2f} M tokens"
    )
    return size, binding, reason, found
