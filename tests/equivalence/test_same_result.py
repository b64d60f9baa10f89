"""What must not change what is learnt, does not: one reference run a class, the real command, all of a table.

A class is a set of configurations that are one training run: whole batches or parts of them, one worker or several,
resumed or not, on a quiet machine or beside others (workers in several processes: tests/train/test_workers.py). The
reference is made once; each other member is compared with it: by the digest of all weights and by the held-out loss, bit for
bit, or within what float32 rounds where sums are added up in another order.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.train.command import TINY, shoestring_here

ALONE = ("--budget=2ktok",)
PLAIN = (*ALONE, *"--optim=sgd --fallback=sgd --optim.lr=0.1 --fallback.lr=0.1".split())
"""Steps as large as the gradients: what is rounded otherwise stays as small as it is."""
WORKERS = (*ALONE, *"--workers=2 --sync=muloco --sync.every=4 --sync.codec=2bit --train.batch=8".split())
TWO_THREADS = (*ALONE, "--execution.threads=2")
LOCAL = (*WORKERS, "--transport=local")


@dataclass(frozen=True)
class Result:
    """Of a run. weights: of its last checkpoint, by name. digest: of their bytes."""

    heldout_loss: float
    tokens: int
    digest: str
    checkpoint: Path


def result(run: Path) -> Result:
    summary = json.loads((run / "summary.json").read_text())
    newest = sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors"
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(newest).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return Result(summary["heldout_loss"], summary["tokens"], digest.hexdigest(), newest)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes that take all the time that they are given, beside."""
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in beside:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def references(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """The run of each class that the others are compared with."""
    made = {}
    kept = ("--train.checkpoint_every=0.0001", "--train.keep=100")  # after every step, to be resumed from
    for number, flags in enumerate((ALONE, LOCAL, PLAIN, TWO_THREADS)):
        out = tmp_path_factory.mktemp("reference") / str(number)
        _, *rest = flags
        status, _, errors = shoestring_here(
            "train",
            flags[0],
            f"--data.corpus={corpus}",
            "--out",
            out,
            *TINY,
            *rest,
            *(kept if flags in (ALONE, LOCAL) else ()),
        )
        assert status == 0, errors
        made[flags] = out
    return made


def resumed(run: Path, out: Path) -> Path:
    """The run, gone on with from the checkpoint in its middle."""
    shutil.copytree(run, out)
    steps = sorted((out / "checkpoints").iterdir())
    middle = int(steps[len(steps) // 2].name.removeprefix("step-"))
    assert 0 < middle < int(steps[-1].name.removeprefix("step-"))
    status, _, errors = shoestring_here("train", "--resume", out, "--from-step", middle)
    assert status == 0, errors
    return out


CASES = {
    "parts of 1": (PLAIN, ("--train.micro_batch=1",), False),
    "parts of 2": (PLAIN, ("--train.micro_batch=2",), False),
    "the whole batch": (PLAIN, ("--train.micro_batch=4",), True),
    "resumed": (ALONE, "resumed", True),
    "one thread beside a busy process": (ALONE, "busy", True),
    "two threads beside busy processes": (TWO_THREADS, "busy", True),
    "workers, resumed": (LOCAL, "resumed", True),
    "workers, beside a busy process": (LOCAL, "busy", True),
}
"""By name: the class by its reference's flags; what is done otherwise, in further flags or as a word; whether bit for bit."""


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_the_reference(
    name: str, corpus: Path, tmp_path: Path, references: dict[tuple[str, ...], Path]
) -> None:
    flags, otherwise, exact = CASES[name]
    out, words = tmp_path / "run", ["train", f"--data.corpus={corpus}", "--out", tmp_path / "run", *TINY]
    if otherwise == "resumed":
        resumed(references[flags], out)
    elif otherwise == "busy":
        with busy(2):
            status, _, errors = shoestring_here(*words, *flags)
        assert status == 0, errors
    else:
        status, _, errors = shoestring_here(*words, *flags, *otherwise)
        assert status == 0, errors
    found, expected = result(out), result(references[flags])
    assert found.tokens == expected.tokens
    if exact:
        assert found.digest == expected.digest
        assert found.heldout_loss == expected.heldout_loss
    else:
        assert found.digest != expected.digest, "added up in the same order: the part of a batch was not taken"
        assert found.heldout_loss == pytest.approx(expected.heldout_loss, abs=1e-5)
        one, other = load_file(found.checkpoint), load_file(expected.checkpoint)
        assert one.keys() == other.keys()
        for weight in one:
            assert (one[weight] - other[weight]).norm() <= 1e-5 * other[weight].norm(), weight


def test_another_seed_is_another_result(corpus: Path, tmp_path: Path, references: dict[tuple[str, ...], Path]) -> None:
    """That the digest can tell."""
    status, _, errors = shoestring_here(
        "train", *ALONE, f"--data.corpus={corpus}", "--out", tmp_path / "run", *TINY, "--seed=1"
    )
    assert status == 0, errors
    assert result(tmp_path / "run").digest != result(references[ALONE]).digest
