"""A stack of unlike layers through the real command: trained on packed documents, resumed, generated from."""

import json
import shutil
from pathlib import Path

import pytest

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

SPARSE = """
[model]
layers = 9
token_mixer = {name = "attention"}
[[model.pattern]]
at = "0"
token_mixer = {name = "infllm_v2", block = 4, window_blocks = 1, top_blocks = 2, dense_length = 8}
[[model.pattern]]
at = "1"
token_mixer = {name = "mosa", sparse_heads = 4, share = 0.25}
[[model.pattern]]
at = "2"
token_mixer = {name = "s2_attention", block = 4, window_blocks = 1, stride = 2}
[[model.pattern]]
at = "3"
token_mixer = {name = "lavo", window = 8}
[[model.pattern]]
at = "4"
token_mixer = {name = "sha_rnn", attention = true}
channel_mixer = "boom"
[[model.pattern]]
at = "5"
token_mixer = {name = "srwm", chunk = 8}
[[model.pattern]]
at = "6"
token_mixer = {name = "long_convolution", length = 16, by = "monarch"}
[[model.pattern]]
at = "7"
token_mixer = {name = "fixed_point", most = 2}
[[model.span]]
at = "8"
name = "recurrent_memory"
segment = 8
"""


@pytest.mark.parametrize(
    ("given", "tokens"), [(RECIPE, 1536), (SPARSE, 512)], ids=["states and experts", "sparse and convolved"]
)
def test_a_stack_is_trained_resumed_and_generated_from(given: str, tokens: int, corpus: Path, tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(given)
    own = [word for word in TINY if not word.startswith("--model.layers")]
    words = [recipe, f"--budget={tokens}tok", f"--data.corpus={corpus}", *own, "--data.packing=isolated"]
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
