"""Layouts of several devices: against a published table, and against what `[parallel]` can do."""

import json
from dataclasses import replace
from math import prod
from typing import Any

import pytest
from scipy.stats import spearmanr

from shoestring.config import build
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.parallel.layout import ParallelLayout
from shoestring.plan.parallel_layouts import DEVICES, ModelSizes, Placement, StateBytes, predict, ranked
from tests.train.command import shoestring_here

MEASURED = {
    (65, False): {
        (1, 2, 4): 55.3, (1, 2, 8): 55.1, (2, 4, 4): 52.9, (2, 4, 8): 50.6, (1, 4, 4): 50.6, (1, 4, 2): 50.3,
        (1, 4, 8): 47.3, (2, 8, 2): 43.3, (2, 8, 4): 42.5, (1, 8, 2): 40.6, (1, 8, 4): 39.2, (2, 8, 8): 37.9, (1, 8, 8): 35.9,
    },
    (13, False): {
        (1, 1, 1): 70.6, (2, 2, 1): 63.0, (1, 1, 2): 60.3, (1, 2, 1): 59.8, (2, 1, 2): 56.5, (1, 2, 2): 53.7, (2, 2, 2): 53.4,
        (4, 2, 2): 49.8,
    },
    (13, True): {(4, 1, 1): 51.0, (2, 1, 1): 51.0, (1, 1, 1): 49.9, (4, 2, 1): 42.4, (2, 2, 2): 34.9},
}  # fmt: skip
"""Measured share of peak in percent by (micro-batch, tensor, stages), of (billions of parameters, layers checkpointed).

Hagemann et al. (2023), arXiv:2311.05610: Llama on A100 of 80 GB, 2,048 tokens, 2,048 sequences a step, FlashAttention 2, and fused
norms where nothing is checkpointed."""

SHAPES = {65: (80, 8192, 64, 22016, 128), 13: (40, 5120, 40, 13824, 64)}
"""Layers, width, heads, hidden features, and the devices of the table."""


def test_the_order_of_layouts_is_near_that_of_a_published_table() -> None:
    for billions, (layers, width, heads, hidden, devices) in SHAPES.items():
        shape = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "hidden": hidden,
            "context": 2048,
            "vocabulary": 32000,
        }
        sizes = ModelSizes.of(build(ModelConfig, shape))
        pairs = []
        for (of, again), rows in MEASURED.items():
            for (micro_batch, tensor, stages), measured in rows.items() if of == billions else ():
                checkpointing = "layers" if again else "none"
                options = {"data": devices // tensor // stages, "tensor": tensor, "checkpointing": checkpointing}
                placement = Placement(build(ParallelLayout, options), micro_batch, stages)
                found = predict(sizes, DEVICES["a100"], placement, 2048, StateBytes(2, 2, 12, divided=True))
                assert found.memory < DEVICES["a100"].memory  # it ran
                pairs.append((found.share, measured))
        assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.8


def small(**more: Any) -> ModelConfig:
    shape = {"layers": 2, "width": 64, "heads": 4, "hidden": 128, "context": 64, "vocabulary": 256}
    return build(ModelConfig, shape | more)


def test_what_is_ranked_can_be_trained_and_more_devices_hold_more() -> None:
    steps = ranked(small(), 8, "h100", 16)
    assert [step.share for step in steps] == sorted((step.share for step in steps), reverse=True)
    for step in steps:
        layout = step.placement.layout
        assert prod((layout.data, layout.fsdp, layout.tensor)) == 8
        assert layout.tensor in (1, 2, 4)
        assert 16 % (layout.parts * step.placement.micro_batch) == 0
        assert 0 < step.share < 1
    by_fsdp = {
        s.placement.layout.fsdp: s.memory for s in steps if s.placement.layout.tensor == s.placement.micro_batch == 1
    }
    assert by_fsdp[8] < by_fsdp[2] < by_fsdp[1]


def test_experts_are_divided_where_there_are_some_and_a_process_holds_less_of_them() -> None:
    mixer = {"name": "moe", "experts": 4, "expert_hidden": 128}
    steps = [each for each in ranked(small(channel_mixer=mixer), 8, "h100", 16) if each.placement.micro_batch == 1]
    found = {each.placement.layout: each for each in steps}
    assert {layout.expert for layout in found} == {1, 2, 4}  # 8 does not divide 4 experts
    whole, half, quarter = (found[ParallelLayout(data=8, expert=expert)] for expert in (1, 2, 4))
    stacks = 2 * 4 * 3 * 128 * 64  # layers, experts, matrices
    assert whole.memory - half.memory == pytest.approx(16 * stacks / 2)
    assert half.memory - quarter.memory == pytest.approx(16 * stacks / 4)
    assert 0 == whole.seconds["experts"] < half.seconds["experts"] < quarter.seconds["experts"]
    assert {each.placement.layout.expert for each in ranked(small(), 8, "h100", 16)} == {1}


def test_rows_are_divided_where_it_is_asked_for() -> None:
    steps = ranked(small(), 8, "h100", 16, context=2)
    assert {each.placement.layout.context for each in steps} == {2}
    assert {each.placement.layout.processes for each in steps} == {8}
    whole = {each.placement.layout: each for each in ranked(small(), 4, "h100", 16) if each.placement.micro_batch == 1}
    for step in steps:
        if step.placement.micro_batch == 1:
            assert step.seconds["keys and values"] > 0
            assert step.memory < whole[replace(step.placement.layout, context=1)].memory  # half of the activations
    with pytest.raises(UsageError, match="does not divide among 8 devices"):
        ranked(small(context=63), 8, "h100", 16, context=2)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UsageError, match="no figures of a device 'h10'"):
        ranked(small(), 8, "h10", 16)
    with pytest.raises(UsageError, match="does not divide among 8 devices"):
        ranked(small(), 8, "h100", 1)
    with pytest.raises(UsageError, match="no layout fits: the leanest takes"):
        ranked(small(layers=100, width=16384, heads=128, hidden=65536, context=4096), 8, "h100", 8)


def test_the_command_shows_layouts() -> None:
    shape = "--model.layers=2 --model.width=64 --model.heads=4 --model.context=64 --train.batch=16".split()
    status, output, _ = shoestring_here("plan", "--devices=4", "--gpu=h100", "--json", *shape)
    assert status == 0
    found = json.loads(output)["layouts"]
    assert {"share", "memory", "seconds", "placement"} <= found[0].keys()
    status, _, errors = shoestring_here("plan", "--devices=4", "--gpu=h100")
    assert status == 2
    assert "which model? its layers, width, heads, context are open" in errors
    status, _, errors = shoestring_here("plan", "--devices=4")
    assert status == 2
    assert "--devices N and --gpu NAME go together" in errors
