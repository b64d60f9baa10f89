"""What an exchange costs a worker: a round of K workers in one process, matrices of one row length encoded as one and each alone.

Printed for each model are the processor seconds of one worker's share of a round (encoding, averaging, decoding, the outer step;
one thread, nothing sent), the medians of the rounds, and the median of the rounds' own ratios. Both sides take turns on the same
deltas, and the bench ends with 1 where they come to other weights. A minute or two.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.sync.codecs import pieces
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.feedback import ErrorFeedback
from shoestring.sync.lockstep import Lockstep
from shoestring.sync.transport.local import LocalGroup
from shoestring.train.run_folder import environment

SHAPES = ((2, 64), (12, 128), (12, 512))
"""layers, width."""
ALONE, TOGETHER = 0, pieces.TOGETHER


class Side:
    """The workers of one way to encode. together: entries up to which tensors are encoded as one."""

    def __init__(self, layers: int, width: int, workers: int, together: int) -> None:
        torch.manual_seed(0)
        shape = ModelConfig(layers=layers, width=width, heads=width // 32, context=64, vocabulary=1024)
        self.models, self.together = [Transformer(shape) for _ in range(workers)], together
        for model in self.models[1:]:
            model.load_state_dict(self.models[0].state_dict())
        outers = [
            DiLoCo(
                model,
                every=1,
                codec=Linear(bits=2),
                feedback=ErrorFeedback(1.0, held="weights"),
                transport=transport,
            )
            for model, transport in zip(self.models, LocalGroup(workers).transports, strict=True)
        ]
        self.lockstep = Lockstep(outers)

    @torch.no_grad()
    def round(self, number: int) -> float:
        """Move every worker as chance has it and exchange. Returns the processor seconds of the exchange."""
        chance = torch.Generator().manual_seed(number)
        for model in self.models:
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=chance), alpha=0.01)
        pieces.TOGETHER = self.together
        began = time.process_time()
        self.lockstep.step([{}] * len(self.models))
        return time.process_time() - began

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.models[0].parameters()])


def measured(layers: int, width: int, workers: int, rounds: int) -> dict[str, Any]:
    """Raises: SystemExit where the two sides differ."""
    sides = {name: Side(layers, width, workers, size) for name, size in {"as one": TOGETHER, "alone": ALONE}.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            took = side.round(number) / workers
            if number:  # the first meets cold caches
                seconds[name].append(took)
    if not torch.equal(sides["as one"].weights(), sides["alone"].weights()):
        print(f"{layers} x {width}: the two ways came to other weights")
        raise SystemExit(1)
    ratios = [alone / one for one, alone in zip(seconds["as one"], seconds["alone"], strict=True)]
    found = {
        "layers": layers,
        "width": width,
        "parameters": sides["alone"].weights().numel(),
        "seconds": seconds,
        "ratio": median(ratios),
    }
    print(
        f"{layers} layers of width {width}, {found['parameters']:,} parameters: as one "
        f"{1e3 * median(seconds['as one']):.1f} ms a worker, alone {1e3 * median(seconds['alone']):.1f}, "
        f"ratio {found['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    return found


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each way")
    shapes = [f"{layers}x{width}" for layers, width in SHAPES]
    parser.add_argument(
        "--shapes", nargs="+", default=shapes, metavar="LAYERSxWIDTH", help=f"default {' '.join(shapes)}"
    )
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    sizes = [tuple(int(side) for side in shape.split("x")) for shape in options.shapes]
    found = [measured(layers, width, options.workers, options.rounds) for layers, width in sizes]
    if options.json:
        content = {"environment": environment(probe()), "workers": options.workers, "models": found}
        atomic.write_text(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
