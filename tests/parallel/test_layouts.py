"""Every layout of two processes against one process: losses, weights, and a state that goes on under another layout."""

import json
import math
import multiprocessing
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.parallel.activation_checkpointing import Kept, checkpoint_layers, recomputed_flops
from shoestring.train import checkpoint
from tests.flop_counting import CPU_ATTENTION
from tests.parallel.layout_models import SIZES, VOCABULARY, every_model, native
from tests.parallel.layout_runs import LENGTH, MOVES, ROWS, TABLE, batch, every_layout, loss_of


def test_two_processes_of_any_layout_train_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = every_model(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")  # torch is imported here already
    processes = [context.Process(target=every_layout, args=(rank, port, models, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for row, found, other in zip(TABLE, results[0]["table"], results[1]["table"], strict=True):
        assert found["loss"] < 1e-5, (row, found)
        assert found["weights"] < 1e-4, (row, found)
        assert found["state"] < 1e-4, (row, found)
        assert found["record"], row
        assert found["names"], row
        if "fsdp" in row[2]:  # the state is divided: each process has about half
            kept = [each["held"] / found["all"] for each in (found, other)]
            assert 0.3 < kept[0] < 0.7, (row, found)
            assert sum(kept) == pytest.approx(1.0, abs=0.02)
    for move, apart in zip(MOVES, results[0]["moved"], strict=True):
        assert apart < 1e-5, move
    assert max(apart for result in results for each in result["noise"] for apart in each) < 1e-4
    assert results[0]["gradients"] < 1e-12
    received, formula = results[0]["bytes"]
    assert received == formula > 0
    gradients, received, formula = results[0]["rows"]
    assert gradients < 1e-12
    assert received == formula > 0
    narrow = results[0]["narrow"]
    assert narrow["seen"] == [["bfloat16", "torch.bfloat16"], ["float32", "torch.float32"]]
    assert narrow["kept"] == ["torch.float32"]
    assert 0 < narrow["apart"] < 2e-3, narrow
    pruned_to_half(models["experts"](), dict(checkpoint.load(tmp_path / "moved-1")[1].model))


def pruned_to_half(model: LanguageModule, weights: dict[str, Tensor]) -> None:
    """Experts that were divided are pruned as any others: a checkpoint of theirs is one process's."""
    model.load_state_dict(weights)
    whole = {name: weight.clone() for name, weight in model.named_parameters()}
    inputs, targets = batch(0)
    edit: Any = Choice.of("surgery", "expert_pruning", kind="edit", share=0.5).build()
    decision = edit.decide(model, Evidence(0, (Batch(Inputs(inputs), targets),)))
    pruned = edit.apply(model, decision)
    for kept in decision.values["keep"]:
        layer, name = pruned.blocks[kept["layer"]].channel_mixer, f"blocks.{kept['layer']}.channel_mixer.output.weight"
        assert layer.experts == 2
        torch.testing.assert_close(layer.output.weight, whole[name][kept["indices"]], rtol=0, atol=0)
    assert float(loss_of(pruned, inputs, targets).detach()) < 2 * math.log(VOCABULARY)


@pytest.mark.parametrize(
    ("model", "parts", "line"),
    [
        (
            {"pattern": [{"at": "1", "token_mixer": "lightning"}]},
            "context",
            "layer 1 mixes tokens by lightning, which needs whole",
        ),
        ({"causal": False}, "context", "this model sees both ways"),
        ({"span": [{"name": "loop", "at": "0:2"}]}, "context", "the span loop may look at whole rows"),
        ({}, "expert", "this model has no layer of experts"),
        (
            {"channel_mixer": {"name": "moe", "experts": 3}},
            "expert",
            "= 2 does not divide the 3 experts of blocks.0.channel_mixer",
        ),
        ({"channel_mixer": "moe", "span": [{"name": "loop", "at": "0:2"}]}, "expert", r"within a span \(loop\)"),
    ],
)
def test_what_cannot_be_divided_is_said(model: dict[str, Any], parts: str, line: str) -> None:
    from shoestring.parallel.context_parallel import divide_context
    from shoestring.parallel.expert_parallel import divide_experts

    mesh: Any = SimpleNamespace(size=lambda: 2)
    divided = Transformer(build(ModelConfig, {**SIZES, **model}))
    with pytest.raises(UsageError, match=line):
        (divide_context if parts == "context" else divide_experts)(divided, mesh)


@pytest.mark.parametrize("kept", ["inputs", "products"])
def test_checkpointing_changes_no_gradient_and_its_operations_are_known(kept: Kept) -> None:
    plain, checkpointed = native(), native()
    checkpoint_layers(checkpointed.anatomy(), kept)
    norm, counted, normed = checkpointed.get_submodule("blocks.0.token_norm"), [], []
    norm.register_forward_pre_hook(lambda *_: normed.append(1))
    for model in (plain, checkpointed):
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        with counter:
            loss_of(model, *batch(0)).backward()
        counted.append(counter.get_total_flops())
    last = [plain.get_parameter(f"blocks.{layer}.channel_mixer.output.weight") for layer in range(SIZES["layers"])]
    unused = sum(
        2 * ROWS * LENGTH * weight.numel() for weight in last
    )  # nothing keeps what a layer's last product gives
    again = recomputed_flops(plain, ROWS, LENGTH) - unused if kept == "inputs" else 0
    assert counted[1] - counted[0] == again
    assert len(normed) == 2  # what is cheap is computed again either way
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)
