"""What is imported when: imports are what a command's first seconds go to. One process, in which each step may import no more."""

import subprocess
import sys
from pathlib import Path

from tests.train.command import TINY

LOADED = """
import sys
from shoestring.cli.main import main

def tell(what, *modules):
    print(what, *(name for name in modules if name in sys.modules))

try: main(["--help"])
except SystemExit: pass
tell("help:", "torch", "rich", "pydantic")
from shoestring.method import find, methods
find("optim", "muon"), find("data", "jsonl", "format"), find("schedule", "wsd_s")
others = ["optim.soap", "data.formats.parquet", "data.clusters.clustering", "schedule.cosine"]
tell("found:", *(f"shoestring.{other}" for other in others))
assert "soap" in {card.name for card in methods()}
tell("all methods:", "torch._dynamo")
from shoestring.config import build
from shoestring.model import ModelConfig
from shoestring.plan.sizes import parameters
parameters(build(ModelConfig, {"layers": 1, "width": 32, "heads": 2, "vocabulary": 50, "context": 32}))
tell("planned:", "torch._dynamo")
status = main(["train", *sys.argv[1:]])
tell(f"trained with status {status}:", "torch._dynamo", "transformers", "pandas", "matplotlib.pyplot")
"""


def test_no_step_imports_what_it_does_not_need(corpus: Path, tmp_path: Path) -> None:
    """torch's compiler alone takes as long as torch, and transformers longer: where nothing is compiled a run needs neither."""
    words = ["--budget=1ktok", f"--data.corpus={corpus}", f"--out={tmp_path / 'run'}", *TINY]
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line.strip() for line in done.stdout.splitlines()]
    for step in ("help:", "found:", "all methods:", "planned:", "trained with status 0:"):
        assert step in said
    assert (tmp_path / "run" / "transformers" / "config.json").is_file()
