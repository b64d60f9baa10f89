"""A small network from what sums up a text to vectors before one, and its training, which goes on where it was stopped."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from shoestring import atomic
from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.author import PrefixAuthor
from shoestring.data.curation.account import Account, OutOfTime
from shoestring.errors import ShoestringError, first_line

FILE = "network.safetensors"

KEPT = 50
"""Steps of training after which it is kept: what a kill costs at most."""

SUMMED = 32
"""Texts that are summed up at a time."""

log = logging.getLogger(__name__)


class PrefixNetwork(nn.Module):
    """P(z) [n, length, width] of summaries z [n, size], each of the vectors by two layers of its own:

        P_k(z) = b_k + V_k tanh(U_k (z - mean) / deviation + c_k),   U_k [hidden, size],  V_k [width, hidden]

    b_k starts at `centre` [width], V_k at random so that an entry of P_k varies by about `spread`. mean, deviation: of the
    entries of the summaries that it is trained on, as those of one model's texts are nearly the same but for a little.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, summaries: Tensor, length: int, hidden: int, centre: Tensor, spread: float, seed: int) -> None:
        super().__init__()
        generator, size, width = torch.Generator().manual_seed(seed), summaries.shape[1], len(centre)
        self.inner = nn.Parameter(torch.randn(length, hidden, size, generator=generator) / size**0.5)
        self.inner_bias = nn.Parameter(torch.zeros(length, hidden))
        self.outer = nn.Parameter(torch.randn(length, width, hidden, generator=generator) * (spread / hidden**0.5))
        self.outer_bias = nn.Parameter(centre.repeat(length, 1))
        self.register_buffer("mean", summaries.mean(0))
        self.register_buffer("deviation", summaries.std(0, unbiased=False).clamp_min(1e-6))

    def forward(self, summaries: Tensor) -> Tensor:
        inner = torch.einsum("ne,lhe->nlh", (summaries - self.mean) / self.deviation, self.inner) + self.inner_bias
        return torch.einsum("nlh,lwh->nlw", inner.tanh(), self.outer) + self.outer_bias

    def flops(self, rows: int, backward: bool) -> int:
        """Operations for so many summaries; of the first layer no gradient of its inputs is taken."""
        return 2 * rows * (self.inner.numel() * (1 + backward) + self.outer.numel() * (1 + 2 * backward))


@dataclass(frozen=True)
class Reconstruction:
    """How a network is trained to have a frozen model write again what was summed up.

    min over the network of  -1/N sum_x log p(x | P(z(x))),  by Adam with a constant rate

    length, hidden: sizes of the network. steps: of `batch` texts, each drawn without regard to those before. rate: of Adam.
    tokens: of a text, at most. seed: of the first weights and of the texts of each step.
    """

    length: int
    hidden: int
    steps: int
    batch: int
    rate: float
    tokens: int
    seed: int

    def trained(
        self, model: PrefixAuthor, texts: Sequence[str], folder: Path, account: Account
    ) -> tuple[PrefixNetwork, Charge]:
        """The network, and what it took, whenever that was. Kept in `folder` every `KEPT` steps, and found again there.

        Raises: OutOfTime, where what was learnt is kept; ShoestringError where what was kept is damaged.
        """
        path = folder / FILE
        kept, about = _read(path) if path.exists() else ({}, {"step": 0})
        before, spent = Charge(**about.get("spent", {})), NOTHING
        if "summaries" in kept:
            summaries = kept["summaries"]
        else:
            summaries, spent = _summaries(model, texts, self.tokens, account)
        centre, spread = model.embeddings
        network = PrefixNetwork(summaries, self.length, self.hidden, centre, spread, self.seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.rate)
        if kept:
            _load(kept, network, optimiser, path)
        for step in range(about["step"], self.steps):
            try:
                account.check()
            except OutOfTime:
                _write(path, network, optimiser, summaries, step, before + spent)
                raise
            drawn = torch.Generator().manual_seed((self.seed << 32) + step)
            chosen = torch.randperm(len(texts), generator=drawn)[: self.batch]
            loss, charge = model.loss(network(summaries[chosen]), [texts[one] for one in chosen.tolist()], self.tokens)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            own = Charge(flops=network.flops(len(chosen), True))
            account.charge(own)
            spent += charge + own
            if step == 0 or not (step + 1) % KEPT or step + 1 == self.steps:
                log.info(
                    f"step {step + 1} of {self.steps}: {float(loss.detach()):.3f} nats a token of the texts behind their vectors"
                )
                _write(path, network, optimiser, summaries, step + 1, before + spent)
        return network.requires_grad_(False), before + spent


def _summaries(model: PrefixAuthor, texts: Sequence[str], tokens: int, account: Account) -> tuple[Tensor, Charge]:
    made, spent = list[Tensor](), NOTHING
    for start in range(0, len(texts), SUMMED):
        account.check()
        found, charge = model.summaries(texts[start : start + SUMMED], tokens)
        made.append(found)
        spent += charge
    return torch.cat(made), spent


def _write(
    path: Path, network: PrefixNetwork, optimiser: torch.optim.Adam, summaries: Tensor, step: int, spent: Charge
) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        state: dict[str, Tensor] = optimiser.state[parameter]
        tensors |= {f"adam.{name}.{key}": tensor for key, tensor in state.items()}
    about = json.dumps({"step": step, "spent": spent.as_dict()})
    atomic.write_bytes(path, save({**tensors, "summaries": summaries}, {"about": about}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118, no dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ShoestringError(f"{path} is damaged ({first_line(error)}): delete it and it will be made anew") from None


def _load(kept: dict[str, Tensor], network: PrefixNetwork, optimiser: torch.optim.Adam, path: Path) -> None:
    try:
        network.load_state_dict({name: kept[name] for name in network.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ShoestringError(f"{path} is damaged ({first_line(error)}): delete it and it will be made anew") from None
    for name, parameter in network.named_parameters():
        prefix = f"adam.{name}."
        state = {key.removeprefix(prefix): tensor for key, tensor in kept.items() if key.startswith(prefix)}
        if state:  # none before the first step
            optimiser.state[parameter] = state
