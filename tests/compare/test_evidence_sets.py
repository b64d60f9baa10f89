"""The sets of bench/evidence.py ask for arms that there are and that can be run."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from shoestring.compare.recipes import candidate, check_workers
from shoestring.config import build, merge, overrides, read_toml
from shoestring.train.config import RunConfig

ROOT = Path(__file__).parent.parent.parent


def load_evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_evidence", ROOT / "bench" / "evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


evidence = load_evidence()
SETS = {**evidence.FULL, **evidence.QUICK}


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
