"""`shoestring train` with [parallel]: a rank is killed, and the run goes on under another layout; what is refused, and why."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from shoestring.base import open_model
from shoestring.config import build, overrides
from shoestring.contract.batch import Batch, Inputs
from shoestring.data.stream import Pure, stream_of
from shoestring.errors import UsageError
from shoestring.parallel.layout import ParallelLayout
from shoestring.shrink.export import export_transformers
from shoestring.train.checkpoint import load
from shoestring.train.config import RunConfig
from shoestring.train.parallel import own_batches
from shoestring.train.stored_run import stored_run
from shoestring.train.worker_batches import WorkerBatches
from tests.train.command import LIMIT, TINY, finished, shoestring, shoestring_here, start

SAME = "--budget=2560tok --optim=muon --optim.precision=float32 --train.micro_batch=2 --execution.device=cpu".split()


def read(run: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(the summary, the weights of the newest checkpoint, whoever wrote it)."""
    return json.loads((run / "summary.json").read_text()), dict(load(run / "checkpoints")[1].model)


def require_streamed_export(place: Path, out: Path) -> None:
    """Written from the parts of a checkpoint, tensor by tensor, a model is what it is written from the whole."""
    stored, whole = stored_run(str(place)), open_model(str(place))
    assert stored is not None
    outline, weights = stored
    assert all(parameter.is_meta for parameter in outline.model.parameters())  # type: ignore[attr-defined]
    export_transformers(outline, out / "streamed", torch.bfloat16, weights)
    export_transformers(whole, out / "whole", torch.bfloat16)
    names = sorted(path.name for path in (out / "whole").iterdir())
    assert names == sorted(path.name for path in (out / "streamed").iterdir())
    for name in names:
        assert (out / "streamed" / name).read_bytes() == (out / "whole" / name).read_bytes(), name


def test_a_rank_is_killed_and_the_run_goes_on_under_another_layout(corpus: Path, tmp_path: Path) -> None:
    words = [*TINY, *SAME, f"--data.corpus={corpus}"]
    status, _, errors = shoestring_here("train", *words, "--out", tmp_path / "one")
    assert status == 0, errors
    run = tmp_path / "two"
    flags = ["--parallel.fsdp=2", "--train.checkpoint_every=0.001", "--train.keep=100"]
    process = start("train", *words, *flags, "--out", run)
    end = time.monotonic() + LIMIT
    while len(list((run / "checkpoints").glob("step-*"))) < 2:
        assert process.poll() is None, finished(process)
        assert time.monotonic() < end
        time.sleep(0.01)
    workers = [each for each in psutil.Process(process.pid).children() if each.is_running()]
    workers[-1].send_signal(signal.SIGKILL)
    status, _, errors = finished(process)
    assert status == 1
    assert "lost" in errors or "was ended by SIGKILL" in errors
    assert "Traceback" not in errors
    of_two = min((run / "checkpoints").glob("step-*"))
    assert {path.name for path in of_two.glob("model*")} == {"model-00000.safetensors", "model-00001.safetensors"}
    require_streamed_export(of_two, tmp_path)
    status, output, errors = shoestring_here("train", "--resume", run, "--parallel.fsdp=1")
    assert status == 0, errors
    assert "resumed from the checkpoint of step" in output
    (one, weights), (two, others) = read(tmp_path / "one"), read(run)
    assert two["heldout_loss"] == pytest.approx(one["heldout_loss"], abs=1e-5)
    assert (two["steps"], two["tokens"], two["flops"]) == (one["steps"], one["tokens"], one["flops"])
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-4)


def both(out: Path, words: list[str], name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    """(the summary of a run of one process, that of two, the weights): the two trained alike."""
    found: dict[str, Any] = {}
    for how, layout in {"one": (), "two": ("--parallel.fsdp=2",)}.items():
        status, _, errors = shoestring("train", *words, *layout, "--out", out / f"{name}-{how}")
        assert status == 0, errors
        found[how] = read(out / f"{name}-{how}")
    (one, weights), (two, others) = found["one"], found["two"]
    assert two["heldout_loss"] == pytest.approx(one["heldout_loss"], abs=1e-5)
    assert (two["steps"], two["tokens"], two["flops"]) == (one["steps"], one["tokens"], one["flops"])
    assert weights.keys() == others.keys()
    for key, weight in weights.items():  # those that are rounded in training amplify rounding
        torch.testing.assert_close(others[key], weight, rtol=0, atol=1e-3)
    return one, two, weights


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a short run; a corpus of numbers lies beside it."""
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    for number in range(40):
        (numbers / f"{number}.txt").write_text(" ".join(str((number * 7919 + place) % 1000) for place in range(60)))
    return [*TINY, "--budget=1280tok", "--execution.device=cpu", "--train.micro_batch=2", "--train.sample_tokens=0"]


MUON = ("--optim=muon", "--optim.precision=float32")


def on_sources(corpus: Path, folder: Path) -> list[str]:
    """Two sources, a mixture that changes, rows that grow, and a number format."""
    return [
        f"--data.source.lines.corpus={corpus}",
        f"--data.source.numbers.corpus={folder / 'numbers'}",
        "--data.mixture=ramp",
        "--data.mixture.start.lines=1",
        "--data.mixture.end.numbers=1",
        "--data.length=length_stages",
        "--data.length.stages=[8, 32]",
        "--data.length.until=[0.5]",
        "--edits=ternary",
        *MUON,
    ]


def test_sources_edits_and_old_text_train_as_in_one_process(corpus: Path, tmp_path: Path, words: list[str]) -> None:
    one, two, _ = both(tmp_path, [*words, *on_sources(corpus, tmp_path)], "first")
    assert two["heldout_domains"] == pytest.approx(one["heldout_domains"], abs=1e-5)
    base = [f"--model.base={tmp_path / 'first-two'}", "--edits=lora", "--edits.lora.rank=2"]
    texts = [f"--data.corpus={tmp_path / 'numbers'}", f"--old.corpus={corpus}"]
    one, two, weights = both(tmp_path, [*words, *texts, *base], "second")
    assert all(name.endswith((".up", ".down")) for name in weights)
    assert two["tuning"]["old"] == pytest.approx(one["tuning"]["old"], abs=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_the_optimiser_of_its_base(corpus: Path, tmp_path: Path, words: list[str]) -> None:
    words = [*words, f"--data.corpus={corpus}", *MUON]
    both(tmp_path, words, "first")
    both(tmp_path, [*words, f"--model.base={tmp_path / 'first-two'}", "--train.base_optimizer=true"], "second")


class Numbers:
    """Row i is 8 i, 8 i + 1 ..., and each token's target is itself."""

    def batch(self, start: int, count: int) -> Batch:
        values = torch.arange(8 * start, 8 * (start + count)).view(count, 8)
        return Batch(Inputs(values), values)


@pytest.mark.parametrize("streamed", [False, True])
def test_processes_of_a_worker_read_its_rows_once(streamed: bool) -> None:
    layout = ParallelLayout(data=2, context=2)
    whole: Any = WorkerBatches(Numbers(), 1, 2)
    own = [own_batches(Pure(whole) if streamed else whole, layout, rank) for rank in range(layout.processes)]
    found = [stream_of(each).take(8, 8, 0.0) for each in own]
    assert all(each.inputs.positions.tolist() == (each.targets % 8).tolist() for each in found)  # type: ignore[union-attr]
    numbers = torch.cat([each.targets.flatten() for each in found])
    assert sorted(numbers.tolist()) == list(range(8 * 12, 8 * 16))  # rows 12 to 15: the second worker's of 8 to 15
    rows = [(each.targets // 8).unique().tolist() for each in found]
    assert rows == [[12, 13], [12, 13], [14, 15], [14, 15]]


def test_the_axes_of_a_layout_say_where_each_process_is() -> None:
    layout = ParallelLayout(data=2, fsdp=3, context=2, tensor=2, expert=3)
    for rank in range(layout.processes):
        at = layout.places(rank)
        assert ((at["data"] * 3 + at["fsdp"]) * 2 + at["context"]) * 2 + at["tensor"] == rank
        assert at["expert"] == layout.part(rank) % 3


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--parallel.precision=bfloat16", "weights that fsdp gathers"),
        ("--parallel.fsdp=2 --parallel.precision=bfloat16 --execution.precision=float32", "for products in bfloat16"),
        ("--parallel.fsdp=2 --transport=local", "give --transport distributed"),
        ("--parallel.data=3 --train.batch=4", "train.batch = 4 does not divide into 3 equal parts"),
        ("--parallel.data=2 --train.batch=4 --train.micro_batch=4", "does not divide a process's part of the batch, 2"),
        ("--parallel.tensor=2 --execution.compile=blocks", "execution.compile = blocks has not been tried"),
        ("--parallel.checkpointing=layers --execution.compile=blocks", "give execution.compile = none"),
        ("--parallel.fsdp=0", "parallel.fsdp"),
        ("--parallel.fsdp=2 --edits=qk_clip", "the edit qk_clip looks at a whole batch"),
        ("--parallel.tensor=2 --edits=lora", "adapters and number formats look at whole matrices"),
        ("--parallel.data=2 --edits=adalora", "the edit adalora looks at a whole batch"),
        ("--parallel.tensor=2 --train.batch=4 --train.micro_batch=2 --train.noise_scale_every=1", "not measured with"),
        ("--parallel.context=2 --train.batch=4 --train.micro_batch=2 --train.noise_scale_every=1", "not measured with"),
        ("--parallel.data=2 --parallel.expert=2 --edits=ternary", "adapters and number formats look at whole matrices"),
        ("--parallel.data=2 --data.selection=hard_batches", "data.selection is read by one process"),
        ("--parallel.data=2 --parallel.expert=4", "data 2 x fsdp 1 = 2 do not make groups of 4"),
        ("--parallel.context=2 --model.context=6", "divides rows into 4 equal parts, which model.context = 6 is not"),
        ("--parallel.context=2 --objective=multi_token", "parallel.context predicts next tokens: give next_token"),
    ],
)
def test_what_does_not_go_together_is_refused(flags: str, line: str) -> None:
    words = ["--budget=4ktok", "--model.vocabulary=64", *flags.split()]
    with pytest.raises(UsageError, match=line.replace("(", r"\(")):
        build(RunConfig, {"model": {}, **overrides(words)})
