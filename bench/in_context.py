"""Do MLPs learn from examples in their context as Transformers do? Loss above the best answer's, at equal training FLOPs.

William L. Tong and Cengiz Pehlevan, MLPs Learn In-Context on Regression and Classification Tasks, arXiv:2405.15618. The tasks are
those of `in_context_tasks.py`: regression, against ridge regression; classification, against Bayes; match-to-sample, which can be
solved without error. Problems are drawn anew for each step, so there is nothing to learn by heart.

Three backbones. 'mlp': all rows as one vector, `layers` hidden layers with ReLU. 'mixer' and 'transformer': a matrix reads each
row, `layers` blocks of this library with the token mixer `mlp_mixer` or `attention`, both causal, and a matrix reads the query's
place.
Each is trained at every --widths, by AdamW at every --rates, until --flops are spent: a step that costs more buys fewer steps.
FLOPs are those of `contract/cost.py`. Of each task and backbone the best on problems for choosing is then judged on others, which
no choice has seen.

Excess is the mean loss of the model less that of the best answer on the same problems: squared error, or nats. Every run is a line
of --out, and what is there is not run again.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from in_context_tasks import TASKS, InContextTask, Problems
from run_lines import RunLines, add_flags, settings
from three_domains import untimed_environment
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.config import build
from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.model.block import Block, Place
from shoestring.model.config import ModelConfig
from shoestring.model.initialise import initialise
from shoestring.model.transformer import rotary_tables
from shoestring.optim import AdamW
from shoestring.schedule.wsd import WSD

CHOOSING, JUDGING = 1, 2
"""Seeds of the problems by which a run is chosen, and of those by which the chosen one is judged."""


class MLP(nn.Module):
    """All rows as one vector."""

    def __init__(self, task: InContextTask, width: int, layers: int) -> None:
        super().__init__()
        sizes = [task.length * task.features, *[width] * layers]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.output = nn.Linear(width, task.outputs)

    def forward(self, rows: Tensor) -> Tensor:
        x = rows.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        found: Tensor = self.output(x)
        return found

    def flops(self, count: int) -> int:
        """Of a step on so many problems."""
        layers = [*self.hidden, self.output]
        return sum(cost.linear(layer, count, True, number > 0) for number, layer in enumerate(layers))


class Stacked(nn.Module):
    """Blocks of the library over rows, read at the query's place."""

    def __init__(self, task: InContextTask, width: int, layers: int, token_mixer: str) -> None:
        super().__init__()
        heads = max(1, width // 32)
        sizes = {"layers": layers, "width": width, "heads": heads, "vocabulary": 1, "context": task.length}
        config = build(ModelConfig, {**sizes, "token_mixer": token_mixer, "channel_mixer": "gelu"})
        self.input = nn.Linear(task.features, width)
        self.blocks = nn.ModuleList(Block(config, Place(number, layers, task.length)) for number in range(layers))
        self.norm = config.norm.build(width)
        self.output = nn.Linear(width, task.outputs)
        self.rotary = rotary_tables(config)
        parts: list[Any] = [part for block in self.blocks for part in (block.token_mixer, block.channel_mixer)]
        initialise(self.blocks, self.input, self.output, [part.output for part in parts])
        self.length = task.length

    def forward(self, rows: Tensor) -> Tensor:
        x, tables = self.input(rows), self.rotary(0, self.length)
        for block in self.blocks:
            x = block(x, *tables)
        found: Tensor = self.output(self.norm(x)[:, -1])
        return found

    def flops(self, count: int) -> int:
        """Of a step on so many problems."""
        shape = Shape(count, self.length, backward=True)
        total = cost.linear(self.input, shape.tokens, True, False) + cost.linear(self.output, count, True)
        blocks: list[Any] = list(self.blocks)
        return total + sum(block.flops(shape, True) for block in blocks)


def backbone(name: str, task: InContextTask, width: int, layers: int) -> MLP | Stacked:
    if name == "mlp":
        return MLP(task, width, layers)
    return Stacked(task, width, layers, {"mixer": "mlp_mixer", "transformer": "attention"}[name])


BACKBONES = ("mlp", "mixer", "transformer")


def generator(*numbers: int) -> torch.Generator:
    """One for each tuple of numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def excess(model: nn.Module, task: InContextTask, problems: Problems) -> float:
    """The mean loss above that of the best answers."""
    return float(task.loss(model(problems.rows), problems.answers)) - task.best_loss(problems)


def run(task_name: str, name: str, width: int, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """One run, as a line of the file."""
    task = TASKS[task_name](examples=options.examples)
    torch.manual_seed(options.seed)
    model = backbone(name, task, width, options.layers)
    each = model.flops(options.batch)
    steps = max(1, math.floor(options.flops / each))
    optimizer, schedule = AdamW(model.parameters(), lr=rate, weight_decay=0.0), WSD()
    for step in range(steps):
        problems = task.draw(options.batch, generator(options.seed, 0, step))
        loss = task.loss(model(problems.rows), problems.answers)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step / steps) * min(1.0, (step + 1) / max(1.0, 0.05 * steps))
        optimizer.step()
        optimizer.zero_grad()
    found = {
        way: excess(model, task, task.draw(options.problems, generator(options.seed, number)))
        for way, number in (("choosing", CHOOSING), ("judging", JUDGING))
    }
    best = task.best_loss(task.draw(options.problems, generator(options.seed, JUDGING)))
    about = {"task": task_name, "backbone": name, "width": width, "rate": rate, "steps": steps, "flops": steps * each}
    parameters = sum(p.numel() for p in model.parameters())
    return {**about, "parameters": parameters, "excess": found, "best_loss": best, "settings": shared(options)}


def chosen(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each task and backbone the run that was best on the problems for choosing; one whose loss is no number is never."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        key = line["task"], line["backbone"]
        value = line["excess"]["choosing"]
        if math.isfinite(value) and (key not in found or value < found[key]["excess"]["choosing"]):
            found[key] = line
    return list(found.values())


def table(lines: Sequence[dict[str, Any]]) -> None:
    print("task | backbone | width | rate | steps | parameters | excess loss | the best answer's loss")
    for line in sorted(chosen(lines), key=lambda line: (line["task"], line["excess"]["judging"])):
        words = [line["task"], line["backbone"], line["width"], f"{line['rate']:g}", f"{line['steps']:,}"]
        words += [f"{line['parameters']:,}", f"{line['excess']['judging']:.4f}", f"{line['best_loss']:.4f}"]
        print(" | ".join(map(str, words)))


def shared(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that make runs comparable."""
    return settings(options, "tasks", "backbones", "widths", "rates")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "evidence/in-context/runs.jsonl")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="default all")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES), help="default all")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256], help="default 64 256")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="default 1e-3 3e-3")
    parser.add_argument("--flops", type=float, default=1e12, help="of a run, default 1e12")
    for name, value in {"layers": 2, "examples": 8, "batch": 128, "problems": 4096, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    options = parser.parse_args(words)
    if options.smallest:
        vars(options).update({"flops": 1e8, "widths": [32], "rates": [1e-3], "batch": 16, "problems": 64, "layers": 1})
    if (
        min(options.layers, options.examples, options.batch, options.problems, *options.widths) < 1
        or options.flops <= 0
    ):
        raise SystemExit("--layers, --examples, --batch, --problems, --widths and --flops are at least 1")
    torch.set_num_threads(1)
    runs = RunLines(options.out, shared(options))
    if not options.show:
        made = {(line["task"], line["backbone"], line["width"], line["rate"]) for line in runs.lines}
        for task in options.tasks:
            for name in options.backbones:
                for width in options.widths:
                    for rate in options.rates:
                        if (task, name, width, rate) not in made:
                            runs.add(run(task, name, width, rate, options))
                            found = runs.lines[-1]["excess"]["choosing"]
                            print(f"{task}, {name}, width {width}, rate {rate:g}: {found:.4f}", flush=True)
    table(runs.lines)
    runs.keep(options.json, shared(options), untimed_environment, chosen=chosen(runs.lines))


if __name__ == "__main__":
    main()
