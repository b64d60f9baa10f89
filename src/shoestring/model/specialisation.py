"""How far experts specialise: which of them the texts of each domain go to."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule, causally

LOAD = ".load"


class Specialisation(NamedTuple):
    """The use of one layer's experts by domain.

    use: [D, E], which share of the tokens of domain d went to expert e; rows add up to 1.
    entropy: [D], nats: log E where a domain uses all experts alike, 0 where it uses one.
    information: nats, I(domain; expert), domains counted alike: 0 where all domains use experts in the same way, at most
    log min(D, E).
    """

    use: Tensor
    entropy: Tensor
    information: float


def specialisation(loads: Tensor) -> Specialisation:
    """loads: [D, E], tokens of each domain that each expert took. A domain without any counts as one that uses all alike."""
    counts = loads.double()
    total = counts.sum(1, keepdim=True)
    use = torch.where(total > 0, counts / total.clamp_min(1), torch.full_like(counts, 1 / counts.shape[1]))
    each = _entropy(use)
    # I(domain; expert) = H(expert) - H(expert | domain)
    return Specialisation(use, each, float(_entropy(use.mean(0)) - each.mean()))


def expert_use(
    model: LanguageModule, domains: Mapping[str, Iterable[Batch]]
) -> tuple[dict[str, Specialisation], Charge]:
    """(of each layer with experts, by the name of its block, how its experts are used by the domains in their order; what it took).

    model: native. domains: texts by name. A model without experts gives nothing.
    """
    loads: dict[str, list[Tensor]] = {}
    spent = NOTHING
    with torch.no_grad(), causally(model):
        for place, batches in enumerate(domains.values()):
            for batch in batches:
                reading = model.read(batch.inputs.to(model.device))
                spent += Charge(flops=reading.cost.flops, read=batch.targets.numel(), calls=1)
                for name, load in reading.notes.items():
                    if name.endswith(LOAD):
                        kept = loads.setdefault(name.removesuffix(LOAD), [])
                        kept += [torch.zeros_like(load, device="cpu") for _ in range(place + 1 - len(kept))]
                        kept[place] += load.cpu()
    return {name: specialisation(torch.stack(kept)) for name, kept in loads.items()}, spent


def _entropy(shares: Tensor) -> Tensor:
    return torch.special.entr(shares).sum(-1)
