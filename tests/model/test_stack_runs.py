"""A stack of unlike layers through the real command: trained on packed documents, resumed, generated from."""

import json
import shutil
from pathlib import Path

from tests.train.command import TINY, newest_weights, shoestring_here

RECIPE = """
[model]
layers = 4
[[model.pattern]]
at = "::2"
token_mixer = {name = "lightning"}
[[model.pattern]]
at = "1"
token_mixer = {name = "gated_delta", chunk = 8}
[[model.pattern]]
at = "3"
channel_mixer = {name = "moe", experts = 4}
[[model.span]]
at = "1:3"
name = "loop"
"""


def test_a_stack_is_trained_resumed_and_generated_from(corpus: Path, tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    own = [word for word in TINY if not word.startswith("--model.layers")]
    words = [recipe, "--budget=1536tok", f"--data.corpus={corpus}", *own, "--data.packing=isolated"]
    often = ["--train.checkpoint_every=0.001", "--train.keep=100"]
    status, said, errors = shoestring_here("train", *words, *often, "--out", run)
    assert status == 0, errors
    assert "router" in said + errors
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["auxiliary"] > 0 for line in lines if line["kind"] == "train")
    steps = sorted(int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*"))
    again = tmp_path / "again"
    shutil.copytree(run, again)
    status, _, errors = shoestring_here("train", "--resume", again, "--from-step", steps[0])
    assert status == 0, errors
    assert newest_weights(again) == newest_weights(run)
    status, said, errors = shoestring_here("generate", run, "a", "--tokens", "5", "--json")
    assert status == 0, errors
