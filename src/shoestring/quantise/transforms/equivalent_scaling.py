"""Scales between what writes a feature and what reads it, folded into both: columns that matter are rounded more finely."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.method import Positive, Whole, method
from shoestring.quantise.format import CodeFormat
from shoestring.quantise.native_parts import KnownBlock, known_blocks
from shoestring.quantise.parts import Changed, Over, Transform
from shoestring.surgery.observe import observe

ROWS = 256
"""Rows of a matrix that scales are chosen on, at most: every so many-th."""

POWERS = 11
"""Powers of the activations, from 0 to 1, that are tried first."""

LEAST = 1e-4


@dataclass(frozen=True)
class ScaledPair:
    """A reader whose columns may be scaled, and the rows of what writes them.

    reader: the name of a linear layer. writers: (name of a parameter, its first row). count: of scales. columns: [in] the scale
    of each.
    """

    reader: str
    writers: tuple[tuple[str, int], ...]
    count: int
    columns: Tensor


@method(
    "quantise",
    kind="transform",
    name="equivalent_scaling",
    paper="MobileQuant: Mobile-friendly Quantization for On-device Language Models, arXiv:2408.13933",
    claim="near-lossless with 8-bit activations; latency and energy 20% to 50% lower on phones than with existing schemes",
    cost="a pass over the text, and for each pair of matrices 11 + steps roundings of up to 256 rows; nothing where the model runs",
)
class EquivalentScaling(Transform):
    """Scale a feature down where it is written and up where it is read, so that what is computed stays and rounding spoils less.

    Tan et al. (2024), arXiv:2408.13933. For a reader W [out, in], the mean squares m [in] of what it reads, and scales s:

        minimise sum_ij (Q(W diag(s)) diag(1/s) - W)_ij^2 m_j,    W <- W diag(s),  writer <- diag(1/s) writer

    Pairs of writer and reader: a norm's gain and the matrix behind it; values and the output of attention (one scale for all
    heads that share them); the ungated half of a SwiGLU and its output. First s = m^(a/2), of the powers a from 0 to 1 the best;
    then `steps` of Adam on log s, gradients passing straight through Q. Differs: the paper learns all scales together, end to
    end, with static ranges of activations; here each pair is learned by itself, for the weights alone; `--activations static` finds
    ranges afterwards. Native models with the parts of Llama.

    steps: of Adam for each pair. rate: of a step.
    """

    reads = True

    def __init__(self, *, steps: Whole = 8, rate: Positive = 0.02) -> None:
        self.steps, self.rate = steps, rate

    def of_model(self, model: LanguageModule, text: Sequence[Batch], format: CodeFormat, over: Over) -> Changed:
        """As `Transform.of_model`. Pairs that the budget left no time for are left as they are."""
        known, blocks = known_blocks(model)
        pairs = [pair for one in blocks for pair in _pairs(one)]
        squares = dict[str, Tensor]()
        counts = dict[str, int]()

        def look(name: str, inputs: Tensor) -> None:
            x = inputs.flatten(0, -2).float()
            squares[name] = squares.get(name, torch.zeros(())) + x.square().sum(0)
            counts[name] = counts.get(name, 0) + len(x)

        spent = observe(model, text, [pair.reader for pair in pairs], look)
        parameters = {name: one.detach() for name, one in known.named_parameters()}
        made = dict[str, Tensor]()
        done = 0
        for pair in pairs:
            if over():
                break
            name = f"{pair.reader}.weight"
            weight = made.get(name, parameters[name])
            scales = self._learned(weight.float(), squares[pair.reader] / counts[pair.reader], pair, format)
            made[name] = (weight.float() * scales[pair.columns]).to(weight.dtype)
            for writer, first in pair.writers:
                changed = made.get(writer, parameters[writer]).clone()
                rows = changed[first : first + pair.count].float()
                changed[first : first + pair.count] = rows / scales.view(-1, *[1] * (changed.ndim - 1))
                made[writer] = changed
            done += 1
        said = (
            (f"equivalent_scaling: the budget ended after {done} of {len(pairs)} pairs",) if done < len(pairs) else ()
        )
        return Changed(made, said, spent)

    def _learned(self, weight: Tensor, squares: Tensor, pair: ScaledPair, format: CodeFormat) -> Tensor:
        """[count]: the scales of a pair."""
        some = weight[:: max(1, len(weight) // ROWS)]
        each = torch.zeros(pair.count).index_add_(0, pair.columns, squares)
        each = (each / each.mean().clamp_min(1e-30)).clamp_min(LEAST).sqrt()
        best, least = torch.ones(pair.count), float("inf")
        for place in range(POWERS):
            scales = each ** (place / (POWERS - 1))
            scales = scales / (scales.max() * scales.min()).sqrt()
            lost = float(_lost(some, scales, squares, pair, format))
            if lost < least:
                best, least = scales, lost
        logs = best.log().requires_grad_()
        optimiser = torch.optim.Adam([logs], lr=self.rate)
        for _ in range(self.steps):
            with torch.enable_grad():
                loss = _lost(some, logs.exp(), squares, pair, format)
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
            with torch.no_grad():
                lost = float(_lost(some, logs.exp(), squares, pair, format))
                if lost < least:
                    best, least = logs.detach().exp().clone(), lost
        return best


def _lost(weight: Tensor, scales: Tensor, squares: Tensor, pair: ScaledPair, format: CodeFormat) -> Tensor:
    """The squared error of what the reader gives, were columns independent."""
    wide = scales[pair.columns]
    scaled = weight * wide
    rounded = scaled + (format.encode(scaled.detach()).plain() - scaled).detach()
    return ((rounded / wide - weight).square() * squares).sum()


def _pairs(one: KnownBlock) -> list[ScaledPair]:
    """The pairs of a block."""
    block, mixer, channels = one.block, f"{one.name}.token_mixer", f"{one.name}.channel_mixer"
    found = []
    for norm, reader in (("token_norm", f"{mixer}.qkv"), ("channel_norm", f"{channels}.gate_up")):
        module = getattr(block, norm)
        weight = getattr(module, "weight", None)
        if weight is not None:
            kinds = ("weight", "bias") if getattr(module, "bias", None) is not None else ("weight",)
            names = [f"{one.name}.{norm}.{kind}" for kind in kinds]
            width = len(weight)
            found.append(ScaledPair(reader, tuple((name, 0) for name in names), width, torch.arange(width)))
    values = one.shared * one.head_width
    writers = [(f"{mixer}.qkv.weight", one.values)]
    if block.token_mixer.qkv.bias is not None:
        writers.append((f"{mixer}.qkv.bias", one.values))
    heads = torch.arange(one.shared * one.sharing) // one.sharing
    columns = (heads[:, None] * one.head_width + torch.arange(one.head_width)).flatten()
    found.append(ScaledPair(f"{mixer}.output", tuple(writers), values, columns))
    hidden = block.channel_mixer.output.in_features
    up = ((f"{channels}.gate_up.weight", hidden),)
    found.append(ScaledPair(f"{channels}.output", up, hidden, torch.arange(hidden)))
    return found
