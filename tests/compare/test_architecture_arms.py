"""The arms of `bench/architectures.py`: there is one for each part, and each is a model."""

import importlib
import sys
from pathlib import Path
from typing import Any

from shoestring.config import build
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.model.outline import outline

BENCH = str(Path(__file__).parents[2] / "bench")
sys.path.insert(0, BENCH)
bench: Any = importlib.import_module("architectures")
sys.path.remove(BENCH)
SIZES = {"layers": 6, "width": 64, "heads": 2, "vocabulary": 2048, "context": 64}


def test_every_arm_is_a_model() -> None:
    arms = bench.arms()
    for name, changes in arms.items():
        if name == "scone":  # the bench lists the pairs
            changes = {"span": [{**changes["span"][0], "ngrams": ["1 2", "2 3"]}]}
        with outline():
            model = Transformer(build(ModelConfig, {**SIZES, **changes}))
        assert len(model.blocks) == 6, name


def test_every_part_has_an_arm() -> None:
    said = str(list(bench.arms().items()))
    kinds = ("token mixer", "channel mixer", "router", "norm", "residual", "embedding", "span")
    parts = {card.name for kind in kinds for card in methods("model", kind)}
    assert {name for name in parts if name not in said} <= {"space_byte", "swiglu", "rmsnorm", "pre_norm"}
