"""Which layers learn, which stay as they are, and which are given a copy to learn in, by what new text asks of them."""

import itertools
import math
from typing import ClassVar, Literal

import torch

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import IGNORED
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Whole, method
from shoestring.tune.adapter_edit import writers
from shoestring.tune.matrix import is_matrix

By = Literal["angular", "gradient"]


@method(
    "tune",
    kind="edit",
    name="llm_ade",
    paper="When Life gives you LLMs, make LLM-ADE: Large Language Models with Adaptive Data Engineering, arXiv:2404.13028",
    claim="on TinyLlama, significant gains on general knowledge benchmarks without the drawbacks of continuous training, by "
    "freezing and expanding chosen blocks",
    cost="a forward pass over some text first, a backward pass too by 'gradient'; then `expand` layers more, most weights frozen",
)
class LLMADE:
    """Freeze most layers, train those that new text asks most of, and put copies that start as nothing behind some of them.

    A layer is asked much of the more it turns the hidden states x of the new text, or the more its weights theta_l would change:

        angular:   mean_t arccos(cos(x_{l,t}, x_{l+1,t})) / pi          gradient:   |dL/dtheta_l| / |theta_l|

    The `expand` layers with the most stay frozen, and a copy is put behind each, whose matrices that write to the residual stream
    are zero: the model starts as the one it is made of. The next `train` layers learn themselves. Embedding, head and norms outside
    are frozen. The paper chooses by angular distances; 'gradient' is this program's. How many layers it takes is not fixed here.

    expand: layers that are given a copy.
    train: layers that learn themselves.
    by: what tells how much is asked of a layer: 'angular' or 'gradient'.
    """

    needs: frozenset[str] = frozenset({"text"})
    rate: ClassVar[float] = 2e-4
    """A learning rate of AdamW to begin with."""

    def __init__(self, *, expand: Whole = 2, train: Whole = 2, by: By = "angular") -> None:
        if not expand + train:
            raise ValueError("llm_ade: with expand = 0 and train = 0 nothing would learn")
        self.expand, self.train, self.by = expand, train, by

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The numbers of the layers. Raises: UsageError without text, or where the model has too few layers."""
        total = len(model.anatomy().layers)
        if self.expand + self.train > total:
            raise UsageError(f"llm_ade: expand = {self.expand} and train = {self.train} are more than {total} layers")
        if not evidence.text:
            raise UsageError("llm_ade looks at text to choose layers: none was given to it")
        found, spent = (angles if self.by == "angular" else sensitivities)(model, evidence)
        order = sorted(range(total), key=lambda number: -found[number])
        expand, train = order[: self.expand], order[self.expand : self.expand + self.train]
        values = {"expand": sorted(expand), "train": sorted(train), self.by: [round(one, 8) for one in found]}
        return Decision(values, spent=spent)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with copies, all frozen but these and the layers that learn."""
        expand, train = decision.values["expand"], decision.values["train"]
        model.anatomy().copy_layers(expand)
        model.requires_grad_(False)
        place = 0
        for number in range(len(model.anatomy().layers) - len(expand)):
            if number in train:
                self._layer(model, place).requires_grad_(True)
            if number in expand:
                place += 1
                copy = self._layer(model, place)
                names = [name for name, module in copy.named_modules() if is_matrix(module)]
                for name in writers(names):
                    for parameter in copy.get_submodule(name).parameters():
                        parameter.data.zero_()
                copy.requires_grad_(True)
            place += 1
        model.changed()
        return model

    def _layer(self, model: LanguageModule, place: int) -> torch.nn.Module:
        return model.get_submodule(model.anatomy().layers[place])

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        said = [
            f"{word} {', '.join(map(str, decision.values[word]))}"
            for word in ("expand", "train")
            if decision.values[word]
        ]
        return f"llm_ade: layers to {' and to '.join(said)}: {trained:,} parameters are trained"


@torch.no_grad()
def angles(model: LanguageModule, evidence: Evidence) -> tuple[list[float], Charge]:
    """(the mean angle, in half turns, by which each layer turns a hidden state; what measuring took)."""
    anatomy = model.anatomy()
    names = (anatomy.embedding, *anatomy.layers)
    sums, tokens, flops = [0.0] * len(anatomy.layers), 0, 0
    for batch in evidence.text:
        reading = model.read(batch.inputs, tap=names)
        states = [reading.tapped[name].float() for name in names]
        for layer, (before, after) in enumerate(itertools.pairwise(states)):
            cosines = torch.nn.functional.cosine_similarity(before, after, dim=-1).clamp(-1, 1)
            sums[layer] += float(cosines.acos().sum()) / math.pi
        tokens += batch.targets.numel()
        flops += reading.cost.flops
    return [value / tokens for value in sums], Charge(flops=flops, read=tokens)


def sensitivities(model: LanguageModule, evidence: Evidence) -> tuple[list[float], Charge]:
    """(of each layer, what measuring took). The model stays as it is."""
    asked = [parameter.requires_grad for parameter in model.parameters()]
    names, spent = model.anatomy().layers, NOTHING
    model.requires_grad_(True)
    try:
        for batch in evidence.text:
            targets = batch.targets.flatten()
            logits = model.read(batch.inputs).logits().flatten(0, -2).float()
            torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED).backward()
            flops = model.cost(Shape(batch.rows, batch.inputs.length, backward=True)).flops
            spent += Charge(flops=flops, read=batch.targets.numel())
        found = []
        for name in names:
            parameters = list(model.get_submodule(name).parameters())
            size = torch.nn.utils.get_total_norm([p.detach() for p in parameters])
            slope = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            found.append(float(slope / size))
    finally:
        for parameter, was in zip(model.parameters(), asked, strict=True):
            parameter.grad = None
            parameter.requires_grad_(was)
        model.changed()
    return found, spent
