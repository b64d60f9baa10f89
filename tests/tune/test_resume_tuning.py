"""A tuning run that is killed goes on bit for bit, whatever tunes it.

What a kill leaves is the folder as it is at that moment: it is copied in the middle of a run, between two steps, and the copy goes
on. Real processes that are killed are in tests/train/test_resume.py.
"""

import shutil
from pathlib import Path

import pytest

from shoestring.config import merge, overrides
from shoestring.launch.launch import Launch
from shoestring.launch.tuning import methods_of_tuning, tuning_request
from shoestring.train.loop import Loop
from tests.train.command import TINY, newest_weights
from tests.train.command import shoestring_here as shoestring

PLAIN = (
    "--execution.compile=none --execution.attention=flash --execution.loss=plain --execution.precision=float32 "
    "--execution.threads=1 --train.heldout_tokens=64 --train.sample_tokens=0 --train.evaluate_every=1 "
    "--train.checkpoint_every=1e-3 --train.keep=2 --model.context=16 --train.batch=2"
).split()
OPTIONS = {
    "road": ("--edits.road.group=8",),
    "compacter": ("--edits.compacter.n=4", "--edits.compacter.bottleneck=8"),
    "key_value_bottleneck": ("--edits.key_value_bottleneck.codebooks=4", "--edits.key_value_bottleneck.keys=8",
                             "--edits.key_value_bottleneck.width=4"),
    "llm_ade": ("--edits.llm_ade.expand=1", "--edits.llm_ade.train=1"),
    "adalora": ("--edits.adalora.rank=2", "--edits.adalora.first_rank=3"),
}  # fmt: skip
WAYS: dict[str, tuple[str, ...]] = {
    **{name: (f"--method={name}", *OPTIONS.get(name, ())) for name in methods_of_tuning()},
    "minifinetuning": ("--objective=minifinetuning",),
    "classp": ("--method=full", "--optim=classp"),
    "egn": ("--optim=egn", "--optim.rows=2"),
    "rewarmed": ("--method=full", "--schedule=rewarmed"),
    "infinite": ("--method=full", "--schedule=infinite"),
    "replay": ("--method=full", "--replay=0.3"),
    "frozen matrices in bfloat16": ("--execution.precision=bfloat16", "--execution.loss=fused"),
}
STEPS = 6


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    shape = [*(word for word in TINY if not word.startswith("--model.layers")), "--model.layers=2"]
    status, _, errors = shoestring("train", "--budget=2ktok", f"--data.corpus={corpus}", *shape, "--out", run)
    assert status == 0, errors
    return run


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_goes_on_bit_for_bit(
    way: str, base: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, killed, step = tmp_path / "whole" / "run", tmp_path / "killed" / "run", Loop._step

    def copying(loop: Loop, progress: float) -> None:
        step(loop, progress)
        if loop.position.step == 2 * STEPS // 3 and not killed.exists():
            shutil.copytree(run, killed)

    monkeypatch.setattr(Loop, "_step", copying)
    method, replay, words = "lora", 0.0, list[str]()
    for word in (*PLAIN, *WAYS[way]):
        name, _, value = word.partition("=")
        if name == "--method":
            method = value
        elif name == "--replay":
            replay = float(value)
        else:
            words.append(word)
    asked = merge(overrides(words), {"budget": f"{STEPS * 2 * 16}tok", "data": {"corpus": str(corpus)}})
    old = str(corpus) if replay else ""
    with Launch() as launch:
        whole = launch.begin(tuning_request(str(base), method, asked, old, replay), run)
    assert len(list((killed / "checkpoints").iterdir())) > 0
    assert not (killed / "summary.json").exists()
    with Launch() as launch:
        again = launch.resume(killed)
    assert again.outcome.summary["steps"] == whole.outcome.summary["steps"] == STEPS
    assert newest_weights(killed) == newest_weights(run)
    for key in ("tuning", "heldout_loss"):
        assert again.outcome.summary.get(key) == whole.outcome.summary.get(key)
