"""Dynamic memory sparsification: a learnt gate decides which keys and values leave the cache, after a delay."""

from typing import Any

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.attention_rule import AttentionSizes, ruled
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, method
from shoestring.surgery.eviction_gate import EvictedShares, EvictionGate


@method(
    "surgery",
    kind="edit",
    name="dms",
    paper="Inference-Time Hyper-Scaling with KV Cache Compression, arXiv:2506.05345",
    claim="8 times fewer keys and values after about 1,000 steps of training; Qwen-R1 32B gains 9.1 points on AIME 24 with as much "
    "memory and time",
    cost="2 Hk width operations a token and layer; in training, attention without a fused kernel, B H T² numbers a layer",
)
class DynamicMemorySparsification:
    """Have a gate of each head of keys decide, as a token is read, whether its key and value leave the cache `delay` tokens on.

        alpha_t = sigmoid((scale g . x_t - offset + noise) / temperature),   noise: the difference of two Gumbel variables
        score(t, j) <- score(t, j) + log(1 - alpha_j)   where t - j > delay

    x_t: [width], the hidden state that the keys are made of; g: [width] of a head of keys, at first 0. So almost nothing is evicted
    at first (offset 5: one token of 150). Added to the loss is

        mean over texts of max(target - mean of alpha over layers, heads and tokens, 0)

    Each head and layer may evict more or less than others. With progress p, target = 1 - 1/(1 + (ratio - 1) min(p / ramp, 1)).
    Without gradients alpha is 1 where scale g . x_t > offset, else 0. A model's own cache then frees what was decided, once no
    later token sees it: `model.new_cache`, and so an engine without any setting, holds it by head, one text at a time.

    ratio: by how much the cache is to shrink. delay: tokens. temperature, offset: as above.
    scale: as above, so that usual rates move a gate far enough.
    ramp: share of the budget after which `target` is as large as it becomes.
    frozen: whether the gates alone are trained.

    The source takes the decision from a neuron of the queries, which it silences first, and trains all weights; the code that its
    authors published trains a gate as here, with all else frozen. They distil from the model as it was: the objective
    `distillation` does that. The noise is the same in all micro-batches of a step. Change the shape of the model before.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        ratio: Positive = 4.0,
        delay: Count = 16,
        temperature: Positive = 0.1,
        offset: Positive = 5.0,
        scale: Positive = 100.0,
        ramp: Positive = 1.0,
        frozen: bool = True,
    ) -> None:
        if ratio <= 1:
            raise UsageError(f"dms: a ratio of {ratio} is no smaller cache: set one above 1")
        self.ratio, self.delay, self.temperature, self.ramp = ratio, delay, temperature, ramp
        self.offset, self.scale, self.frozen = offset, scale, frozen

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The sizes. Raises: UsageError where a layer has no attention that is known, or the model has rules already."""
        anatomy = ruled(model, "dms")
        if any(anatomy.rules()):
            raise UsageError("dms: layers of the model attend by a rule already: one edit can say how a layer attends")
        sizes = [list(one) for one in anatomy.attention_sizes()]
        return Decision({"sizes": sizes, "delay": self.delay, "seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with its gates."""
        values: Any = decision.values
        if self.frozen:
            model.requires_grad_(False)
        shares = EvictedShares(len(values["sizes"]))
        rules = {
            number: EvictionGate(
                AttentionSizes(*sizes),
                shares,
                place=number,
                delay=values["delay"],
                temperature=self.temperature,
                offset=self.offset,
                scale=self.scale,
                seed=values["seed"],
            )
            for number, sizes in enumerate(values["sizes"])
        }
        ruled(model, "dms").set_rules(rules)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Raises: UsageError. What leaves depends on the text."""
        raise UsageError(
            "dms: which tokens leave depends on the text, which is more than one matrix can say: it has no plain form"
        )

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        gates = sum(rule.gate.numel() for rule in _gates(model))
        return f"dms: gates of {gates:,} parameters, to keep one token of {self.ratio:g} beyond the latest {self.delay}"

    def target(self, progress: float) -> float:
        """The share of tokens that is to leave."""
        return 1 - 1 / (1 + (self.ratio - 1) * min(progress / self.ramp, 1.0))

    def before_step(self, model: LanguageModule, at: At) -> Charge:
        """As `Stepped.before_step`: nothing."""
        return NOTHING

    def after_step(self, model: LanguageModule, at: At) -> None:
        """As `Stepped.after_step`: other noise, and a larger target."""
        for gate in _gates(model):
            gate.step.fill_(at.step + 1)
            gate.target.fill_(self.target(at.progress))


def _gates(model: LanguageModule) -> list[EvictionGate]:
    return [rule for rule in ruled(model, "dms").rules() if isinstance(rule, EvictionGate)]
