"""Tuning SmolLM2 beside peft and transformers.Trainer: seconds a 1,000 tokens, and peak memory, by LoRA and in full.

How: each side is a process of its own, so that its peak memory is its own. Both load the same weights (ours from the GGUF file,
the Trainer's from our export of it, float32) and take the same windows of text. After --warmup steps, rounds alternate: --steps of
ours, --steps of the Trainer's, the other side waiting; the median round counts. Both use AdamW, and the precision that the
machine's probe finds the faster; ours settles its execution as `shoestring tune` does, before the clock. LoRA has the same rank,
scale and matrices (peft's 'all-linear'). The loss of the first step, before anything was learnt, must be the same on both sides,
or the bench ends.

    python bench/tune_peers.py --json tune-peers.json           # about 4 minutes on two quiet cores

--smallest shows nothing but that everything works.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from shoestring import atomic
from shoestring.base import open_model
from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import probe
from shoestring.budget.units import show
from shoestring.train.run_folder import environment

PLACE = "smollm2"
METHODS = ("lora", "full")
SIDES = ("shoestring", "trainer")
SMALLEST = "--methods lora --batch 1 --context 16 --steps 1 --rounds 1 --warmup 1 --plain"
TOLERANCE = 0.02
"""Of the first losses, in nats: bfloat16 rounds on both sides."""


def windows(count: int, batch: int, context: int) -> torch.Tensor:
    """[count, batch, context + 1] tokens of text that every machine with torch has."""
    tokenizer = open_model(PLACE).tokenizer
    assert tokenizer is not None
    needed, tokens = count * batch * (context + 1), list[int]()
    for path in sorted((Path(torch.__file__).parent / "include" / "c10").rglob("*.h")):
        tokens += tokenizer.encode(path.read_text(errors="replace"))
        if len(tokens) >= needed:
            break
    return torch.tensor(tokens[:needed]).view(count, batch, context + 1)


# ---- the sides, each in a process of its own: a line of standard input asks for so many steps, a line of output answers


def ours(options: argparse.Namespace, text: torch.Tensor) -> Callable[[int], list[float]]:
    """Takes steps as `shoestring tune` does. Returns what takes so many, and gives their losses."""
    from shoestring.contract.batch import Batch, Inputs
    from shoestring.contract.objective import At
    from shoestring.data.config import DataConfig
    from shoestring.data.prepare import prepare
    from shoestring.launch.request import planned
    from shoestring.launch.tuning import tuning_request
    from shoestring.train.allocator import keep_freed_memory
    from shoestring.train.assembly import assemble
    from shoestring.train.starting import resolve

    keep_freed_memory()
    corpus = str(Path(torch.__file__).parent / "include" / "c10")
    asked: dict[str, Any] = {
        "budget": "1h",
        "data": {"corpus": corpus},
        "model": {"context": options.context},
        "train": {"batch": options.batch, "gradient_clip": 1.0},
        "optim": {"name": "adamw", "lr": 1e-4},
    }
    if options.method == "lora":
        asked["edits"] = [{"name": "lora", "rank": options.rank, "alpha": 2.0 * options.rank}]
    if options.plain:
        asked["execution"] = {"compile": "none", "attention": "flash", "loss": "plain", "precision": "float32"}
    request = tuning_request(PLACE, options.method, asked, "")
    machine, ledger = probe(), Ledger()
    dataset = prepare(DataConfig(corpus=corpus, tokenizer=request.data().tokenizer), _cache())
    _, config = planned(request, machine, dataset, 0.0)
    stepper = assemble(resolve(config, dataset, machine, ledger, 3600.0), dataset).stepper
    done = 0

    def take(count: int) -> list[float]:
        nonlocal done
        losses = []
        for _ in range(count):
            batch = Batch(Inputs(text[done, :, :-1]), text[done, :, 1:])
            losses.append(stepper.gradients(batch, At(done)).loss)
            stepper.apply(1.0)
            done += 1
        return losses

    return take


def _cache() -> Path:
    from shoestring.budget.machine import cache_folder

    return cache_folder()


def theirs(options: argparse.Namespace, text: torch.Tensor) -> None:
    """The Trainer's steps, between which a callback waits to be asked for more."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    model: Any = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    if options.method == "lora":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, settings)
    losses: list[float] = []

    class Kept(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    class Waiting(TrainerCallback):
        left = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self.left:
                self.left, self.since = _asked(), time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.left -= 1
            if not self.left:
                _answer(time.perf_counter() - self.since, losses)
                losses.clear()

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=len(text),
            per_device_train_batch_size=options.batch,
            train_sampling_strategy="sequential",
            bf16=not options.plain and probe().best_precision == "bfloat16",
            optim="adamw_torch_fused",
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        rows = [
            {"input_ids": row[:-1], "labels": row[1:], "shift_labels": row[1:]} for part in text for row in part
        ]  # targets already shifted, so that both predict the same tokens
        made = Kept(model=model, args=arguments, train_dataset=rows, callbacks=[Waiting()])
        made.remove_callback(PrinterCallback)
        made.train()


def _asked() -> int:
    line = sys.stdin.readline()
    if not line.strip():
        sys.exit(0)
    return int(line)


def _answer(seconds: float, losses: Sequence[float]) -> None:
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "losses": list(losses), "peak": int(peak.split()[1]) << 10}), flush=True)


def side(options: argparse.Namespace) -> int:
    text = windows(options.warmup + options.steps * options.rounds, options.batch, options.context)
    if options.side == "trainer":
        theirs(options, text)
        return 0
    take = ours(options, text)
    while True:
        count = _asked()
        began = time.perf_counter()
        losses = take(count)
        _answer(time.perf_counter() - began, losses)


# ---- the bench


class Side:
    """A process that takes steps when asked."""

    def __init__(self, name: str, method: str, words: Sequence[str]) -> None:
        command = [sys.executable, __file__, *words, "--side", name, "--method", method]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name, self.seconds, self.losses, self.peak = name, list[float](), list[float](), 0

    def take(self, count: int) -> float:
        """Seconds of so many steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"{self.name} ended before it was asked to: see what it said above")
            if line.startswith('{"seconds"'):
                break
        found = json.loads(line)
        self.losses += found["losses"]
        self.peak = found["peak"]
        return float(found["seconds"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def beside(method: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Both sides of one method, in turn."""
    words = [f"--{name}={getattr(options, name)}" for name in ("batch", "context", "steps", "rounds", "warmup", "rank")]
    words += [f"--folder={folder}", *(["--plain"] if options.plain else [])]
    sides = [Side(name, method, words) for name in SIDES]
    try:
        for each in sides:
            each.take(options.warmup)
        first = [each.losses[0] for each in sides]
        if abs(first[0] - first[1]) > TOLERANCE:
            raise SystemExit(
                f"{method}: the losses of the first step differ, {first[0]:.4f} and {first[1]:.4f}: no comparison"
            )
        for number in range(options.rounds):
            for each in sides if number % 2 == 0 else reversed(sides):
                each.seconds.append(each.take(options.steps))
    finally:
        for each in sides:
            each.close()
    tokens = options.steps * options.batch * options.context
    return {
        each.name: {
            "seconds_per_1000_tokens": median(each.seconds) / tokens * 1000,
            "rounds": each.seconds,
            "peak_memory": each.peak,
            "first_loss": each.losses[0],
            "last_loss": each.losses[-1],
        }
        for each in sides
    }


def main(words: Sequence[str]) -> int:
    if "--smallest" in words:
        words = [*SMALLEST.split(), *(word for word in words if word != "--smallest")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--plain", action="store_true", help="float32, nothing compiled or measured")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smallest", action="store_true", help="shows nothing but that everything works")
    for name in ("side", "method", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.side:
        return side(options)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        from shoestring.shrink.export import export_transformers

        folder = Path(scratch) / "smollm2"
        export_transformers(open_model(PLACE, torch.float32), folder, torch.float32)
        for method in options.methods:
            found[method] = beside(method, options, str(folder))
    print(f"{'':12}{'s / 1,000 tokens':>18}{'peak memory':>14}{'first loss':>12}{'last loss':>11}")
    for method, both in found.items():
        for name, own in both.items():
            print(
                f"{method:5} {name:10}{own['seconds_per_1000_tokens']:14.3f}{show('bytes', own['peak_memory']):>14}"
                f"{own['first_loss']:12.4f}{own['last_loss']:11.4f}"
            )
        ratio = both["trainer"]["seconds_per_1000_tokens"] / both["shoestring"]["seconds_per_1000_tokens"]
        print(f"{method}: Shoestring is {ratio:.2f} times as fast")
    if options.json:
        told = {
            "place": PLACE,
            "batch": options.batch,
            "context": options.context,
            "rank": options.rank,
            "methods": found,
            "environment": environment(probe()),
        }
        atomic.write_text(options.json, json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
