"""A checkpoint's files are damaged, missing, exchanged or joined by others, or its manifest is forged: it loads exactly, or is
refused in one line."""

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from shoestring.train.checkpoint import FILES, MANIFEST, Snapshot, load, save
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_value


def prepare(folder: Path) -> Case:
    whole = {step: _snapshot(step) for step in (3, 9)}
    for step, snapshot in whole.items():
        save(folder / "good", step, snapshot, keep=2)
    files = {path.relative_to(folder / "good"): path.read_bytes() for path in (folder / "good").rglob("*.*")}
    at = folder / "checkpoints"

    def case(draw: random.Random) -> None:
        shutil.rmtree(at, ignore_errors=True)
        for name, content in files.items():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_bytes(content)
        newest = at / "step-00000009"
        forged = _damage(at, newest, draw)
        step, found = load(at, draw.choice((None, 9)))
        assert step in whole
        assert forged or _equal(found, whole[step]), "a damaged checkpoint was loaded as another one"

    return case


def _damage(at: Path, newest: Path, draw: random.Random) -> bool:
    """Whether the manifest vouches for what was changed, so that it may load."""
    name = draw.choice((*FILES, MANIFEST))
    path = newest / name
    match draw.randrange(9):
        case 0:
            path.unlink()
        case 1:
            (newest / draw.choice(("more.safetensors", "state.json.bak", ".hidden"))).write_bytes(path.read_bytes())
        case 2:
            stray = draw.choice(
                ("step-00000009.bak", "step-11", "step-000000012", "step-", "step-00000099", "STEP-00000010")
            )
            shutil.copytree(newest, at / stray)
        case 3:
            path.write_bytes((at / "step-00000003" / name).read_bytes())
        case 4:
            described = json.loads((newest / MANIFEST).read_text())
            digests = described["sha256"]
            digests.pop(draw.choice(FILES), None)
            if draw.random() < 0.5:
                path.write_bytes(mutate_bytes(path.read_bytes(), draw))
            (newest / MANIFEST).write_text(json.dumps(described))
        case 5 if name != MANIFEST:  # a manifest that agrees with what it should not hold
            path.write_bytes(mutate_json(path.read_bytes(), draw) if name == "state.json" else _other(path, draw))
            described = json.loads((newest / MANIFEST).read_text())
            described["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
            (newest / MANIFEST).write_text(json.dumps(described))
            return True
        case 6:
            described = mutate_value(json.loads((newest / MANIFEST).read_text()), draw)
            try:
                (newest / MANIFEST).write_text(json.dumps(described))
            except RecursionError:
                (newest / MANIFEST).write_text("[" * 5000)
        case _:
            path.write_bytes(
                mutate_json(path.read_bytes(), draw) if name == MANIFEST else mutate_bytes(path.read_bytes(), draw)
            )
    return False


def _other(path: Path, draw: random.Random) -> bytes:
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return mutate_bytes(path.read_bytes(), draw, within=header)


def _snapshot(number: int) -> Snapshot:
    weights = {"a": torch.full((3, 5), float(number)), "b": torch.arange(7, dtype=torch.bfloat16)}
    return Snapshot(weights, {"a.momentum": torch.ones(3, 5)}, {"step": number, "value": [0.1, {"more": None}]})


def _equal(found: Snapshot, whole: Snapshot) -> bool:
    def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    return found.state == whole.state and same(found.model, whole.model) and same(found.optimizer, whole.optimizer)
