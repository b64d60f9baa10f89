"""How long a training step with experts takes beside that of the dense model of equal active FLOPs: one line of JSON.

    OMP_NUM_THREADS=2 python bench/experts_step.py --experts 8 --active 2

Both models are of one size but for the channel mixer, and take their steps in turn: forward, backward and AdamW. The ratio is that
of the medians; its spread is the middle half of the ratios of neighbouring steps.
"""

import argparse
import json
import time
from statistics import median, quantiles

import torch

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.model import ModelConfig, Transformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 6), ("width", 384), ("context", 256), ("rows", 8), ("steps", 20), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--active", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    mixer = {"name": "moe", "experts": options.experts, "router": {"name": "token_choice", "active": options.active}}
    sizes = {"layers": options.layers, "width": options.width, "heads": max(1, options.width // 64)}
    sides = {}
    for name, channels in (("dense", "swiglu"), ("experts", mixer)):
        torch.manual_seed(0)
        tree = {**sizes, "context": options.context, "vocabulary": 4096, "channel_mixer": channels}
        model = Transformer(build(ModelConfig, tree))
        sides[name] = model, torch.optim.AdamW(model.parameters(), 1e-3)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    generator = torch.Generator().manual_seed(1)
    for number in range(options.steps + 3):
        ids = torch.randint(4096, (options.rows, options.context + 1), generator=generator)
        for name, (model, optimizer) in sides.items():
            began = time.perf_counter()
            reading = model.read(Inputs(ids[:, :-1]))
            loss = torch.nn.functional.cross_entropy(reading.logits().flatten(0, 1), ids[:, 1:].flatten())
            auxiliary = reading.auxiliary()
            (loss if auxiliary is None else loss + auxiliary).backward()
            optimizer.step()
            optimizer.zero_grad()
            if number >= 3:
                seconds[name].append(time.perf_counter() - began)
    shape = Shape(options.rows, options.context, backward=True)
    flops = {name: model.cost(shape).flops for name, (model, _) in sides.items()}
    ratios = [a / b for a, b in zip(seconds["experts"], seconds["dense"], strict=True)]
    found = {
        "options": vars(options),
        "flops": flops,
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, (model, _) in sides.items()},
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "ratio": median(seconds["experts"]) / median(seconds["dense"]),
        "spread": [quantiles(ratios, n=4)[0], quantiles(ratios, n=4)[2]],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
