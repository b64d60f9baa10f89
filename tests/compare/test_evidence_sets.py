"""The sets of bench/evidence.py ask for arms that can be run; of every arm that is evidence there are the runs."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from shoestring.compare import RunLog, judge
from shoestring.compare.folder import ComparisonFolder
from shoestring.compare.recipes import candidate, check_workers
from shoestring.config import build, merge, overrides, read_toml
from shoestring.train.config import RunConfig

ROOT = Path(__file__).parent.parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


evidence, smoke = load("evidence"), load("smoke")
SETS = {**evidence.FULL, **evidence.QUICK, **evidence.SMOKE}


@pytest.mark.parametrize("name", SETS)
def test_every_arm_of_every_set_is_a_configuration(name: str) -> None:
    made = SETS[name]
    paths = evidence.recipes(replace(made, rates_of=None), ROOT, ROOT)
    left_to_the_plan = {"budget": made.budget, "model": {}, "train": {"batch": 4}}
    flags = overrides(made.flags.split())
    base = build(RunConfig, merge(left_to_the_plan, merge(read_toml(paths[0]), flags)))
    arms = {path.stem: candidate(base, merge(read_toml(path), flags)) for path in paths[1:]}
    check_workers({made.base: base, **arms})
    assert arms
    assert all(config != base for config in arms.values())


COMPARISONS = sorted(path.parent.name for path in (ROOT / "evidence").glob("*/design.toml"))


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_arm_in_evidence_has_its_runs(name: str) -> None:
    folder = ROOT / "evidence" / name
    design = read_toml(folder / "design.toml")
    records = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    judged = {(record["arm"], record["seed"]) for record in records if record["purpose"] == "judge"}
    assert {path.name for path in (folder / "arms").iterdir()} == {f"{arm}.toml" for arm in design["arms"]}
    assert judged == {(arm, seed) for arm in design["arms"] for seed in design["seeds"]}


@pytest.mark.parametrize("name", COMPARISONS)
def test_evidence_of_earlier_versions_is_read(name: str) -> None:
    folder = ComparisonFolder.open(ROOT / "evidence" / name)
    design = folder.read_design()
    assert set(folder.read_arms(design)) == set(design.arms)
    assert judge(RunLog(folder.records).read(), design).to_json()["comparisons"]


def test_only_the_arms_of_the_design_are_kept(tmp_path: Path) -> None:
    folder, kept = tmp_path / "comparison", tmp_path / "kept"
    (folder / "arms").mkdir(parents=True)
    for file in evidence.LEAN:
        (folder / file).write_text("")
    (folder / "design.toml").write_text('arms = ["a", "b"]')
    (folder / "runs.jsonl").write_text('{"arm": "a"}\n')
    for name in ("a", "b", "left_out"):
        (folder / "arms" / f"{name}.toml").write_text("")
    with pytest.raises(SystemExit, match="no run was made of b"):
        evidence.keep(folder, kept)
    assert not kept.exists()
    with open(folder / "runs.jsonl", "a") as file:
        file.write('{"arm": "b"}\n')
    evidence.keep(folder, kept)
    assert sorted(path.name for path in (kept / "arms").iterdir()) == ["a.toml", "b.toml"]


def test_every_bench_has_a_smallest_setting() -> None:
    assert set(smoke.SMOKES) == smoke.benches()
