"""Low-rank adapters."""

import math
from fnmatch import fnmatchcase

import torch

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import Count, Positive, method
from shoestring.tune.low_rank_linear import LowRankLinear


@method(
    "tune",
    kind="edit",
    name="lora",
    paper="LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685",
    claim="on a par with or better than full fine-tuning on RoBERTa, DeBERTa, GPT-2 and GPT-3, with far fewer trained parameters",
    cost="rank (in + out) parameters and 2 rank (in + out) operations a token for each matrix; no weight gradients of the base",
)
class LoRA:
    """Train a product of two thin matrices beside each weight matrix, and nothing else.

        y = W x + (alpha / rank) B A x,   A [rank, in],  B [out, rank]

    A starts uniform in +- 1 / sqrt(in) (as peft has it), B at zero: a tuned model starts as the one it is made of.
    The paper adapts the attention matrices alone; here all matrices of the layers are, unless `targets` names some.

    rank: the inner size.
    alpha: the scale of what is added, times the rank.
    targets: patterns of the names of the matrices ('*.qkv'); empty: all of the layers.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, rank: Count = 8, alpha: Positive = 16.0, targets: tuple[str, ...] = ()) -> None:
        self.rank, self.alpha, self.targets = rank, alpha, targets

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Which matrices, and the first A of each. Raises: UsageError for a pattern that names none."""
        anatomy = model.anatomy()
        matrices = {matrix.name: matrix.weight for matrix in anatomy.matrices()}
        if not matrices:
            raise UsageError("this model has no linear layers that an adapter can stand beside")
        for pattern in self.targets:
            if not any(fnmatchcase(name, pattern) for name in matrices):
                raise UsageError(f"targets = '{pattern}' names no matrix: {did_you_mean(pattern, matrices)}")
        chosen = [n for n in matrices if not self.targets or any(fnmatchcase(n, pattern) for pattern in self.targets)]
        generator, tensors = torch.Generator().manual_seed(evidence.seed), {}
        for name in chosen:
            inputs = model.get_submodule(name).in_features
            bound = 1 / math.sqrt(inputs)  # type: ignore[arg-type]
            tensors[name] = (torch.rand(self.rank, inputs, generator=generator) * 2 - 1) * bound  # type: ignore[call-overload]
        return Decision({"rank": self.rank, "scale": self.alpha / self.rank}, tensors)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with adapters, in float32, and every other parameter frozen."""
        model.requires_grad_(False)
        for name, down in decision.tensors.items():
            base = model.get_submodule(name)
            device = next(iter(base.state_dict(keep_vars=True).values())).device
            up = torch.zeros(base.out_features, decision.values["rank"], device=device)  # type: ignore[call-overload]
            model.set_submodule(name, LowRankLinear(base, down.to(device, copy=True), up, decision.values["scale"]))
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Each adapter added to the matrix that it stands beside."""
        for name, module in list(model.named_modules()):
            if isinstance(module, LowRankLinear):
                model.set_submodule(name, module.merged())
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return f"lora: adapters of rank {self.rank} on {len(decision.tensors)} matrices: {trained:,} parameters are trained"
