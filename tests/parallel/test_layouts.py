"""Every layout of two processes against one process: losses, weights, and a state that goes on under another layout."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from shoestring.base import open_model
from shoestring.config import Choice, build
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModule
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.partition import Partition, partition
from shoestring.optim.state import flatten_state
from shoestring.parallel.activation_checkpointing import Kept, checkpoint_layers, recomputed_flops
from shoestring.parallel.layout import ParallelLayout
from tests.flop_counting import CPU_ATTENTION

STEPS, ROWS, LENGTH, VOCABULARY = 10, 4, 8, 32

DATA, FSDP, TENSOR = ({kind: 2} for kind in ("data", "fsdp", "tensor"))
TABLE: list[tuple[str, str, dict[str, Any]]] = [
    ("native", "adamw", DATA),
    ("native", "adamw", {**FSDP, "checkpointing": "layers"}),
    ("native", "adamw", TENSOR),
    ("native", "muon", FSDP),
    ("native", "muon", {**TENSOR, "checkpointing": "products"}),
    ("native", "soap", FSDP),
    ("bridged", "muon", {**FSDP, "checkpointing": "products"}),
    ("bridged", "adamw", TENSOR),
    ("biased", "muon", TENSOR),
    ("wrapped", "adamw", DATA),
]
"""(model, optimiser, layout). SOAP turns the rounding of its first gradient into other eigenvectors wherever two eigenvalues
are alike (one process with other micro-batches ends as far off), so it is compared where gradients are summed in one order."""


def batch(step: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1], ids[:, 1:]


def loss_of(model: LanguageModule, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model.read(Inputs(inputs)).logits().flatten(0, 1), targets.flatten())


def claimed_by(model: LanguageModule, optimizer: str) -> Partition:
    options = {"precision": "float32"} if optimizer == "muon" else {}
    return partition(model, Choice.of("optim", optimizer, **options), Choice.of("optim", "adamw"))


def trained_alone(model: LanguageModule, optimizer: str) -> tuple[list[float], dict[str, Tensor], tuple[Any, Any]]:
    """By one process, which takes each batch in two parts, as two processes do."""
    stepper, losses = claimed_by(model, optimizer).build(), []
    for step in range(STEPS):
        parts = [part.chunk(2) for part in batch(step)]
        each = [loss_of(model, *part) / 2 for part in zip(*parts, strict=True)]
        for loss in each:
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        stepper.step()
        stepper.zero_grad()
        losses.append(float(sum(each).detach()))  # type: ignore[union-attr]
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}, flatten_state(stepper)


class Together:
    """One of the processes that train a model."""

    def __init__(self, model: LanguageModule, optimizer: str, layout: ParallelLayout) -> None:
        from shoestring.parallel.optimizer import ShardedOptimizer
        from shoestring.parallel.sharding import shard

        claimed, self.layout = claimed_by(model, optimizer), layout
        self.sharded = shard(model, layout)
        self.optimizer = ShardedOptimizer(self.sharded, claimed)
        self.model = model

    def train(self, steps: range) -> list[float]:
        losses, layout = [], self.layout
        for step in steps:
            own = [part.chunk(layout.parts)[layout.part(dist.get_rank())] for part in batch(step)]
            loss = loss_of(self.model, *own) / layout.parts
            (loss * self.sharded.gradient_scale).backward()
            self.sharded.reduce_gradients()
            self.sharded.clip_gradients(1e9)
            self.optimizer.step()
            self.optimizer.zero_grad()
            total = loss.detach().clone()
            dist.all_reduce(total)
            losses.append(float(total) / layout.tensor)
        return losses


def every_layout(rank: int, port: int, models: dict[str, Callable[[], LanguageModule]], out: Path) -> None:
    """In each of two processes: the table, then a run that changes its layout halfway."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    found: list[dict[str, Any]] = []
    for kind, optimizer, options in TABLE:
        run = Together(models[kind](), optimizer, build(ParallelLayout, options))
        own = run.train(range(STEPS))
        whole = dict(run.sharded.weights())
        state, saved = run.optimizer.whole_state()
        held = sum(t.numel() for t in flatten_state(run.optimizer)[0].values())
        if rank > 0:  # what is whole is so in every process
            found.append({"held": held})
            continue
        losses, weights, (tensors, record) = trained_alone(models[kind](), optimizer)
        found.append(
            {
                "held": held,
                "all": sum(t.numel() for t in tensors.values()),
                "loss": max(abs(one - other) for one, other in zip(losses, own, strict=True)),
                "weights": max(float((weights[name] - whole[name]).abs().max()) for name in weights),
                "state": max((float((tensors[key] - state[key]).abs().max()) for key in state), default=0.0),
                "record": saved == record and state.keys() == tensors.keys(),
            }
        )
    narrow = gathered_in_bfloat16(models["native"])
    first = Together(models["native"](), "muon", ParallelLayout(fsdp=2))
    half = STEPS // 2
    losses = first.train(range(half))
    kept, (state, record) = dict(first.sharded.weights()), first.optimizer.whole_state()
    if rank == 0:
        save_file(kept, out / "model.safetensors")
        save_file(state, out / "optimizer.safetensors")
        (out / "record.json").write_text(json.dumps(record))
    dist.barrier()
    second = Together(models["native"](), "muon", ParallelLayout(tensor=2))
    second.sharded.load(load_file(out / "model.safetensors"))
    second.optimizer.load_whole_state(
        load_file(out / "optimizer.safetensors"), json.loads((out / "record.json").read_text())
    )
    losses += second.train(range(half, STEPS))
    alone = trained_alone(models["native"](), "muon")[0] if rank == 0 else losses
    moved = max(abs(one - other) for one, other in zip(alone, losses, strict=True))
    (out / f"{rank}.json").write_text(json.dumps({"table": found, "moved": moved, "narrow": narrow}))
    dist.destroy_process_group()


def gathered_in_bfloat16(model: Callable[[], LanguageModule]) -> dict[str, Any]:
    """What weights are while a layer computes and as they are kept, and by how much losses differ from those of float32 gathers."""
    losses, seen = [], set()
    for precision in ("float32", "bfloat16"):
        run = Together(model(), "adamw", build(ParallelLayout, {**FSDP, "precision": precision}))
        part = run.model.get_submodule("blocks.0.channel_mixer.output")
        part.register_forward_pre_hook(lambda module, _, p=precision: seen.add((p, str(module.weight.dtype))))
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # it would keep the weights of the first step
            losses.append(run.train(range(STEPS // 2)))
    kept = {str(one.local().dtype) for one in run.sharded.parameters.values()}
    kept |= {str(each.dtype) for each in flatten_state(run.optimizer)[0].values() if each.ndim}
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    return {"seen": sorted(seen), "kept": sorted(kept), "apart": apart}


SIZES = {"layers": 2, "width": 16, "heads": 4, "context": 16, "vocabulary": VOCABULARY}


def native() -> LanguageModule:
    torch.manual_seed(0)
    return Transformer(build(ModelConfig, SIZES))


def biased() -> LanguageModule:
    """With a bias in every layer of its attention."""
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, {**SIZES, "token_mixer": {"name": "attention", "bias": "all"}}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Callable[[], LanguageModule]]:
    """What makes a model of each kind, the same each time."""
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    gpt2 = GPT2Config(vocab_size=VOCABULARY, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes)

    def opened(name: str) -> LanguageModule:
        model = open_model(str(tmp_path / name), torch.float32).model
        assert isinstance(model, LanguageModule)
        assert isinstance(model, Transformer) == (name == "bridged")
        return model.requires_grad_(True).train()

    for name, stock in (("bridged", LlamaForCausalLM(llama)), ("wrapped", GPT2LMHeadModel(gpt2))):
        stock.save_pretrained(tmp_path / name)
        opened(name)
    return {"native": native, "biased": biased, **{name: partial(opened, name) for name in ("bridged", "wrapped")}}


def test_two_processes_of_any_layout_train_as_one(
    models: dict[str, Callable[[], LanguageModule]], tmp_path: Path
) -> None:
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
        if "fsdp" in row[2]:  # the state is divided: each process has about half
            kept = [each["held"] / found["all"] for each in (found, other)]
            assert 0.3 < kept[0] < 0.7, (row, found)
            assert sum(kept) == pytest.approx(1.0, abs=0.02)
    assert results[0]["moved"] < 1e-5
    narrow = results[0]["narrow"]
    assert narrow["seen"] == [["bfloat16", "torch.bfloat16"], ["float32", "torch.float32"]]
    assert narrow["kept"] == ["torch.float32"]
    assert 0 < narrow["apart"] < 2e-3, narrow


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
