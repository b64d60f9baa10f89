"""How far SOAP drifts from itself by rounding alone: one process that takes each batch whole, and one that takes it in two parts.

Prints the largest difference of a loss over 20 steps, for ways to refresh the bases: as it is, without putting the columns in
order, and with columns in order of a power of their estimated eigenvalues. Random tokens, one thread; half a minute.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.config import Choice, build
from shoestring.contract.batch import Inputs
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim import kronecker, soap
from shoestring.optim.partition import partition

Refresh = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

SHAPE = {"layers": 2, "width": 64, "heads": 2, "context": 32, "vocabulary": 256}
ROWS = 8


def losses(parts: int, seed: int, steps: int) -> list[float]:
    """Of a run that takes each batch in so many parts."""
    torch.manual_seed(seed)
    model, found = Transformer(build(ModelConfig, SHAPE)), []
    optimizer = partition(model, Choice.of("optim", "soap"), Choice.of("optim", "adamw")).build()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step + 1000 * seed)
        ids = torch.randint(0, SHAPE["vocabulary"], (ROWS, SHAPE["context"] + 1), generator=generator)
        total = 0.0
        for part in ids.chunk(parts):
            logits = model.read(Inputs(part[:, :-1])).logits().flatten(0, 1)
            loss = F.cross_entropy(logits, part[:, 1:].flatten()) / parts
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(total)
    return found


def in_order(power: float, *, double: bool = False) -> Refresh:
    """`refreshed_basis` with the columns in the order of the estimates' power of so much; 0: in the order that they have."""

    def refresh(factors: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        dtype = bases.dtype
        if double:
            factors, bases = factors.double(), bases.double()
        products = torch.bmm(factors, bases)
        estimates = (bases * products).sum(-2)
        shift = (kronecker.SHIFT * factors.shape[-1] * estimates.amax(-1))[:, None]
        exponents = torch.log(estimates.clamp_min(0) + shift) / torch.log(torch.tensor(power or 2.0))
        keys = exponents.floor() if power else torch.zeros_like(estimates)
        order = torch.argsort(keys, dim=-1, descending=True, stable=True)
        raised = products + shift[:, None] * bases
        return torch.linalg.qr(raised.gather(-1, order.unsqueeze(-2).expand_as(raised))).Q.to(dtype), order

    return refresh


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--smallest", action="store_true", help="as small as it can be: whether it runs")
    options = parser.parse_args(words)
    seeds, steps = (1, 3) if options.smallest else (options.seeds, options.steps)
    torch.set_num_threads(1)
    ways: dict[str, Refresh] = {
        "as it is": kronecker.refreshed_basis,
        "never put in order": in_order(0),
        "power of 4": in_order(4),
        "power of 4, float64": in_order(4, double=True),
        "power of 16": in_order(16),
    }
    for name, way in ways.items():
        soap.refreshed_basis = way  # type: ignore[assignment]
        apart = []
        for seed in range(seeds):
            whole, parted = losses(1, seed, steps), losses(2, seed, steps)
            apart.append(max(abs(one - other) for one, other in zip(whole, parted, strict=True)))
        print(f"{name:20} " + "  ".join(f"{each:.1e}" for each in apart), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
