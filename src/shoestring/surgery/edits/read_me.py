"""Read-ME: a dense model's feed-forward layers become smaller experts, with one router for all of them."""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.config import Choice
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, Iterations, method
from shoestring.surgery.channel_swap import gated_hidden, native
from shoestring.surgery.pruning import best, kept_count

SAMPLE = 8192
"""Tokens, at most, whose streams are sorted into groups."""
SHARPNESS = 4.0
"""Mean size of the best score that the router begins with."""


@method(
    "surgery",
    kind="edit",
    name="read_me",
    paper="Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design, arXiv:2410.19123",
    claim="up to 10.1 % higher MMLU than open dense models of similar size, and up to 6.1 % less mean latency",
    cost="two forward passes over the calibration text; a token then costs `share` of its feed-forward layers",
)
class ReadMe:
    """Each expert keeps the hidden features that are most active on its part of a text; a token goes to one of them in all layers.

    Ruisi Cai et al., 2024, arXiv:2410.19123.

    The streams x that enter layer `first` are sorted by direction into `experts` groups with centres c_e: k-means on the sphere.
    Feature j of a layer matters to expert e by  sum |h_j| ||W_out,j||  over the tokens of group e, h = silu(W_gate x) * W_up x, and
    the round(share hidden) that matter most are its matrices; two experts may share features. The router is `pre_gate` with rows
    c_e at first, and leads in layer `first`. The model is to be trained a little afterwards.

    Different from the paper: groups of tokens in place of the domains of a corpus, and a router that begins with them in place of
    one that is trained beforehand; layers before `first` stay whole. Written from the abstract and a review. For native models
    whose layers are SwiGLU, such as SmolLM2.

    experts: of each layer. share: of the hidden features, that an expert keeps. first: the first layer that is changed, above 0.
    multiple: an expert's size is a multiple of this. iterations: of k-means.
    """

    needs: frozenset[str] = frozenset({"text"})

    def __init__(
        self,
        *,
        experts: Annotated[int, Interval(ge=2, le=64)] = 4,
        share: Fraction = 0.5,
        first: Count = 1,
        multiple: Count = 8,
        iterations: Iterations = 20,
    ) -> None:
        if not share:
            raise ValueError("read_me: share is above 0")
        self.experts, self.share, self.first = experts, share, first
        self.multiple, self.iterations = multiple, iterations

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The router's rows, and the features of each expert. Raises: UsageError without text, and for layers of another kind."""
        layers = self._layers(model)
        if not evidence.text:
            raise UsageError("read_me looks at text to decide: none was given to it")
        entry, spent = f"blocks.{self.first - 1}", NOTHING
        streams = []
        each = max(1, SAMPLE // len(evidence.text))
        for found, charge in self._read(model, evidence, [entry]):
            spent += charge
            stream = found[entry].flatten(0, -2).float()
            streams.append(stream[:: max(1, -(-len(stream) // each))])
        sample = torch.cat(streams)
        centres = spherical_means(sample, self.experts, self.iterations, evidence.seed)
        importance: dict[int, Tensor] = {}
        names = {layer: f"blocks.{layer}.channel_mixer.gate_up" for layer in layers}
        for found, charge in self._read(model, evidence, [entry, *names.values()]):
            spent += charge
            group = (found[entry].flatten(0, -2).float() @ centres.T).argmax(-1)
            for layer, name in names.items():
                gate, up = found[name].flatten(0, -2).float().chunk(2, -1)
                active = (F.silu(gate) * up).abs()
                sums = torch.zeros(self.experts, active.shape[1]).to(active).index_add(0, group, active)
                importance[layer] = importance.get(layer, torch.zeros_like(sums)) + sums
        anatomy, tensors = native(model, "read_me"), {}
        for layer, sums in importance.items():
            sizes = anatomy.model.blocks[layer].channel_mixer.output.weight.detach().float().norm(dim=0)
            count = kept_count(sums.shape[1], self.share, self.multiple)
            tensors[f"{layer}.features"] = torch.tensor([best(row, count) for row in sums * sizes])
        # tokens of one group score SHARPNESS in it, whatever the size of their streams
        tensors["router"] = (centres * (SHARPNESS / (sample @ centres.T).amax(-1).abs().mean())).cpu()
        return Decision({"layers": layers}, tensors, spent)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with experts."""
        anatomy, layers = native(model, "read_me"), list(decision.values["layers"])
        with torch.random.fork_rng(devices=[]):  # what is drawn is replaced
            for layer in layers:
                features = decision.tensors[f"{layer}.features"]
                router = {"name": "pre_gate", "leads": layer == layers[0]}
                options: dict[str, Any] = {
                    "experts": len(features),
                    "expert_hidden": features.shape[1],
                    "router": router,
                }
                mixer = Choice.of("model", "moe", kind="channel mixer", **options)
                dense: Any = anatomy.swap_channel_mixers(str(layer), mixer)[layer]
                made: Any = anatomy.model.blocks[layer].channel_mixer
                reading, writing = dense.gate_up.weight.detach(), dense.output.weight.detach()
                at = features.to(reading.device)
                rows = torch.cat([at, at + writing.shape[1]], 1)
                made.input.weight = nn.Parameter(reading[rows], requires_grad=dense.gate_up.weight.requires_grad)
                taken = writing.T[at].transpose(1, 2).contiguous()
                made.output.weight = nn.Parameter(taken, requires_grad=dense.output.weight.requires_grad)
                if layer == layers[0]:
                    made.router.gate.weight.data.copy_(decision.tensors["router"])
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: experts have no plainer form."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        layers = decision.values["layers"]
        kept = decision.tensors[f"{layers[0]}.features"].shape[1]
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return (
            f"read_me: layers {layers[0]} to {layers[-1]} have {self.experts} experts of {kept} hidden features, and one router: "
            f"{numbers:,} parameters"
        )

    def _layers(self, model: LanguageModule) -> list[int]:
        anatomy = native(model, "read_me")
        found = gated_hidden(anatomy, f"{self.first}:", "read_me")
        return sorted(number for numbers in found.values() for number in numbers)

    def _read(
        self, model: LanguageModule, evidence: Evidence, names: list[str]
    ) -> Iterator[tuple[dict[str, Tensor], Charge]]:
        """What these modules say of each batch, and what it took."""
        with torch.no_grad():
            for batch in evidence.text:
                reading = model.read(batch.inputs.to(model.device), tap=names)
                yield dict(reading.tapped), Charge(flops=reading.cost.flops, read=batch.targets.numel(), calls=1)


def spherical_means(x: Tensor, count: int, iterations: int, seed: int) -> Tensor:
    """[count, width], of length 1: centres of the directions of x [N, width], by k-means from points far apart.

    A centre that no point is nearest to stays where it is. Raises: UsageError for fewer points than centres.
    """
    if len(x) < count:
        raise UsageError(f"{len(x)} tokens cannot be sorted into {count} groups: give more text")
    points = F.normalize(x, dim=-1)
    start = int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(seed)))
    centres = points[start : start + 1]
    while len(centres) < count:
        nearest = (points @ centres.T).amax(-1)
        centres = torch.cat([centres, points[nearest.argmin()][None]])
    for _ in range(iterations):
        group = (points @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add(0, group, points)
        there = group.bincount(minlength=count)[:, None] > 0
        centres = torch.where(there, F.normalize(sums, dim=-1), centres)
    return centres
