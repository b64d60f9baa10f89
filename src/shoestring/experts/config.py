"""What a set of experts is made of: the `[experts]` section of a recipe, beside the run that each expert is like."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Interval

from shoestring.config import Choice
from shoestring.data.clusters.clustering import CLUSTERS
from shoestring.data.clusters.embedding import EMBEDDING
from shoestring.errors import UsageError
from shoestring.method import Count, Decay, Positive
from shoestring.model.config import ModelConfig
from shoestring.plan.sizes import flops_per_token
from shoestring.train.config import RunConfig

Allocate = Literal["tokens", "equal", "difficulty"]


@dataclass(frozen=True)
class ExpertsConfig:
    """Experts of the clusters of a corpus, branched from seed models, all on the one budget of `run`.

    run: what the runs have in common; its budget is that of all of them together (seconds as if one followed another).
    count: how many experts.
    sizes: of the experts, as 'LAYERSxWIDTH' or 'LAYERSxWIDTHxHIDDEN', one each or one for all; none is the model of
    `run`. The larger sizes go to the harder clusters.
    allocate: how what is left of the budget is divided; 'tokens': each expert is trained on as many, so a larger one
    spends more; 'equal': each spends the same; 'difficulty': as 'tokens', but from 1 - spread times the mean for the
    easiest cluster to 1 + spread for the hardest.
    difficulty: of each cluster, by number; none is given: the loss of the smallest seed model on it.
    seed_share: of the budget, for the seed models; 0: experts begin from first weights of their own.
    dense: one model trained on everything with as much budget again, to compare with.
    parallel: runs at a time, each in a process of its own (1: one after another in this one).

    temperature, top_k, every: of the ensemble by cluster distance (`decode.expert_weights`). Raises: ValueError where the parts
    do not go together.
    """

    run: RunConfig
    count: Annotated[int, Interval(ge=2, le=1024)] = 4
    sizes: tuple[str, ...] = ()
    allocate: Allocate = "tokens"
    spread: Annotated[float, Interval(ge=0, lt=1)] = 0.25
    difficulty: tuple[Annotated[float, Interval(ge=-1e6, le=1e6)], ...] = ()
    seed_share: Decay = 0.25
    embedding: Annotated[Choice, EMBEDDING] = field(default_factory=EMBEDDING.choice)
    clusters: Annotated[Choice, CLUSTERS] = field(default_factory=CLUSTERS.choice)
    temperature: Positive = 0.1
    top_k: Count = 2
    every: Count = 32
    parallel: Annotated[int, Interval(ge=1, le=1024)] = 1
    dense: RunConfig | None = None

    def __post_init__(self) -> None:
        if len(self.sizes) not in (0, 1, self.count):
            raise ValueError(f"{len(self.sizes)} sizes for {self.count} experts: give one for all, or one each")
        if self.difficulty and len(self.difficulty) != self.count:
            raise ValueError(f"{len(self.difficulty)} difficulties for {self.count} experts: give one for each cluster")
        if self.top_k > self.count:
            raise ValueError(f"top_k = {self.top_k}: there are only {self.count} experts")
        for limit in ("bytes", "dollars"):
            if getattr(self.run.budget, limit) is not None:
                raise ValueError(f"experts exchange nothing: a budget in {limit} does not limit them")
        if self.run.model.base or self.run.data.documents is not None:
            raise ValueError("experts choose their own base and documents: leave model.base and data.documents out")
        if self.run.data.source:
            raise ValueError("experts find their own domains in one corpus: give data.corpus, and no data.source")
        if self.run.workers > 1:
            raise ValueError(
                "an expert is trained by one worker: leave workers out, and give --parallel for several at a time"
            )
        if self.run.transport == "pipeline":
            raise ValueError("an expert is trained by one process: leave transport = pipeline out")
        models = self.models()
        if self.needs_difficulty and not self.difficulty and not self.seed_share:
            raise ValueError("without a seed model nothing tells the harder clusters: give the difficulty of each")
        if len({model.context for model in models}) > 1:
            raise ValueError("experts read one context")

    def models(self) -> tuple[ModelConfig, ...]:
        """The experts' models, the easiest cluster's first: in order of the operations they take a token."""
        sizes = self.sizes * self.count if len(self.sizes) == 1 else self.sizes
        made = [resized(self.run.model, size) for size in sizes] or [self.run.model] * self.count

        def operations(model: ModelConfig) -> tuple[float, int]:
            return flops_per_token(replace(model, vocabulary=model.vocabulary or 1)), model.width

        return tuple(sorted(made, key=operations))

    @property
    def needs_difficulty(self) -> bool:
        """Whether anything hangs on which cluster is the harder one."""
        return self.allocate == "difficulty" or len(set(map(size_name, self.models()))) > 1


def resized(model: ModelConfig, size: str) -> ModelConfig:
    """The model with other layers, width and inner width ('3x96', or '3x96x256'), its heads as wide as they were.

    Raises: ValueError where the size is not so written, or the width is no multiple of a head's.
    """
    try:
        layers, width, *more = (int(part) for part in size.split("x"))
        (hidden,) = more or (0,)
    except ValueError:
        raise ValueError(f"'{size}' is no size: write LAYERSxWIDTH or LAYERSxWIDTHxHIDDEN, as in 3x96") from None
    if width % model.head_width or width < 1 or layers < 1:
        raise ValueError(f"'{size}' is no size: the width must be a multiple of a head's, {model.head_width}")
    heads = width // model.head_width
    shared = model.heads // model.key_value_heads
    key_value_heads = heads // shared if heads % shared == 0 else heads
    return replace(
        model, layers=layers, width=width, heads=heads, key_value_heads=key_value_heads, hidden=hidden
    )  # fmt: skip


def size_name(model: ModelConfig) -> str:
    """The size of a model, as `resized` reads it."""
    return f"{model.layers}x{model.width}x{model.hidden}"


def with_vocabulary(config: ExpertsConfig, vocabulary: int) -> ExpertsConfig:
    """The configuration with the tokenizer's vocabulary in its model."""
    if config.run.model.vocabulary not in (0, vocabulary):
        raise UsageError(f"model.vocabulary = {config.run.model.vocabulary}, but the tokenizer has {vocabulary} tokens")
    run = replace(config.run, model=replace(config.run.model, vocabulary=vocabulary))
    return replace(config, run=run)
