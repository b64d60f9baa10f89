"""Run folders made up for the tests: what a run of a minute would have written."""

import json
import math
import random
from pathlib import Path
from typing import Any

CONFIG = """\
budget = "{budget}"
seed = {seed}

[model]
layers = 6
width = 256
vocabulary = 4096
token_mixer = {{ name = "attention", qk_norm = true, rope_theta = 10000.0 }}

[optim]
name = "{optim}"
lr = {lr}

[schedule]
name = "wsd"
decay = 0.4

[data]
corpus = "python-stdlib"
heldout = 0.02
"""

SAMPLES = [
    {"step": 100, "prompt": "def read(path):", "text": "def read(path):\n    return self.self.self"},
    {
        "step": 400,
        "prompt": "def read(path):",
        "text": "def read(path):\n    with open(path) as f:\n        return f",
    },
    {"step": 400, "prompt": "import ", "text": '<script>alert("no")</script> & <b>bold</b>'},
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_rows(steps: int, seconds: float, floor: float, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    rows = []
    for step in range(1, steps + 1):
        progress = step / steps
        loss = floor + (8.3 - floor) * math.exp(-14 * progress) + 0.9 * (1 - progress) ** 2 + chance.gauss(0, 0.06)
        rows.append(
            {
                "kind": "train", "step": step, "progress": progress, "seconds": seconds * progress,
                "flops": 1.2e15 * progress, "tokens": 8192 * step, "loss": loss,
                "learning_rate_factor": min(1.0, 20 * progress, (1 - progress) / 0.4),
                "gradient_norm": 0.4 + 2 * math.exp(-30 * progress) + abs(chance.gauss(0, 0.08)),
                "tokens_per_second": 72000 + chance.gauss(0, 900) - (12000 if step % 90 == 0 else 0),
            }
        )  # fmt: skip
    return rows


def make_run(
    folder: Path, *, steps: int = 400, seconds: float = 59.0, floor: float = 2.6, seed: int = 0, optim: str = "muon",
    lr: float = 0.02, budget: str = "60s", summary: bool = True, sync: bool = False,
) -> Path:  # fmt: skip
    """Write a whole run folder; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG.format(budget=budget, seed=seed, optim=optim, lr=lr))
    environment = {"platform": "Linux", "cpu": {"name": "a CPU", "cores": 2}, "packages": {"torch": "2.13.0"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    train = train_rows(steps, seconds, floor, seed)
    held = [
        {**{k: row[k] for k in ("step", "progress", "seconds", "flops", "tokens")}, "kind": "heldout",
         "loss": row["loss"] + 0.08, "bits_per_byte": (row["loss"] + 0.08) / 2.4, "targets": 50000}
        for row in train[steps // 8 - 1 :: steps // 8]
    ]  # fmt: skip
    write_lines(folder / "metrics.jsonl", train + held)
    lines, parts = [], 8
    for part in range(parts):
        spent = {"compute": 0.78, "data": 0.03, "evaluate": 0.09, "checkpoint": 0.04, "compile": 0.05, "idle": 0.01}
        line: dict[str, Any] = {
            "event": "log", "seconds": {cause: share * seconds / parts for cause, share in spent.items()},
            "flops": int(1.2e15 / parts), "tokens": 8192 * steps // parts, "peak_memory": 900_000_000 + part,
        }  # fmt: skip
        if sync:
            line["seconds"] |= {"sync_exposed": 0.5, "sync_hidden": 1.25}
            line |= {"sent": 2_500_000, "received": 5_000_000, "discarded": 4096}
        lines.append(line)
    write_lines(folder / "ledger.jsonl", lines)
    write_lines(folder / "samples.jsonl", SAMPLES)
    if summary:
        last = held[-1]
        (folder / "summary.json").write_text(json.dumps({
            "heldout_loss": last["loss"], "bits_per_byte": last["bits_per_byte"], "steps": steps,
            "tokens": 8192 * steps, "seconds": seconds, "flops": 1.2e15, "parameters": 5_245_184,
            "binding": "seconds", "budget": budget, "stopped": "finished",
        }))  # fmt: skip
    return folder
