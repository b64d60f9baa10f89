"""A run that was stopped is damaged in one place: it goes on to the very weights it would have had, is read as it is, or is
refused in one line."""

import json
import random
import shutil
from pathlib import Path

import torch

from shoestring.report.run_files import read_run
from shoestring.schedule.refinement import gradient_norms
from shoestring.train.checkpoint import list_checkpoints
from shoestring.train.trained import load_trained
from tests.fuzz.expect import command
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_json_lines, mutate_toml, nested
from tests.train.command import TINY, newest_weights

LIMIT = 30.0
"""Seconds: a case may train the second half of a run."""

STEPS, PER_STEP = 24, 4 * 32


def prepare(folder: Path) -> Case:
    corpus, finished, at = folder / "corpus", folder / "finished", folder / "run"
    corpus.mkdir()
    for number in range(40):
        lines = [f"line {place} of text {number}: {'abc' * (1 + (number + place) % 5)}\n" for place in range(20)]
        (corpus / f"{number:03}.txt").write_text("".join(lines))
    flags = [*TINY, "--train.checkpoint_every=0.000001", f"--budget={STEPS * PER_STEP}tok", f"--data.corpus={corpus}"]
    command(["train", "--out", finished, *flags])
    shutil.rmtree(finished / "transformers")
    weights, trained = newest_weights(finished), load_trained(finished)
    files = {path.relative_to(finished): path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    damageable = sorted(name for name in files if name.name not in ("lock", "report.html"))

    def case(draw: random.Random) -> None:
        shutil.rmtree(at, ignore_errors=True)
        for name, content in files.items():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_bytes(content)
        going_on = draw.random() < 0.15
        if going_on:  # from the checkpoint before the last
            (at / "summary.json").unlink()
            shutil.rmtree(at / "checkpoints" / f"step-{STEPS:08d}")
        _damage(at, damageable, draw)
        if going_on:
            command(["train", "--resume", at])
            assert newest_weights(at) == weights, "it went on to other weights"
            return
        match draw.randrange(4):
            case 0:
                found = load_trained(at)
                assert found.step in list_checkpoints(finished / "checkpoints")
                assert found.tokenizer.fingerprint == trained.tokenizer.fingerprint, "another tokenizer was accepted"
                expected = load_trained(finished, found.step).model.state_dict()
                state = found.model.state_dict()
                assert all(torch.equal(state[key], expected[key]) for key in expected), "other weights were accepted"
            case 1:
                read_run(at)
            case 2:
                command(["train", "--resume", at])  # a finished run goes on only where its summary was damaged
                assert newest_weights(at) == weights, "a finished run went on to other weights"
            case _:
                gradient_norms(at)

    return case


def _damage(at: Path, damageable: list[Path], draw: random.Random) -> None:
    existing = [name for name in damageable if (at / name).exists()]
    few = [name for name in existing if name.parts[0] not in ("checkpoints", "tokenizer")]
    name = draw.choice(few if draw.random() < 0.7 else existing)
    path = at / name
    content = path.read_bytes()
    match draw.randrange(12):
        case 0:
            path.unlink()
        case 1:
            stray = draw.choice(
                ("checkpoints/step-00000099.bak", "checkpoints/notes.txt", "checkpoints/step-00000007", "more")
            )
            (at / stray).write_bytes(content)
        case 2:
            path.unlink()
            path.mkdir()
        case 3:
            path.write_bytes(json.dumps(nested(draw.choice((90, 900)), draw)).encode() + b"\n")
        case _:
            change = {".json": mutate_json, ".jsonl": mutate_json_lines, ".toml": mutate_toml}.get(
                path.suffix, mutate_bytes
            )
            path.write_bytes(change(content, draw))
