"""Ways to shrink and to grow against slow references of their formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.batch import Inputs
from shoestring.model import Transformer
from shoestring.surgery.edits import mini_llm, sheared_llama
from shoestring.surgery.edits.cats import CATS, ThresholdedGate
from shoestring.surgery.edits.compactifai import TensorLinear, split
from shoestring.surgery.edits.grow_hidden import GrowHidden
from shoestring.surgery.edits.low_rank_clone import LowRankClone, ProjectedLinear
from shoestring.surgery.edits.mini_gpts import MiniGPTs
from shoestring.surgery.edits.minitron import Minitron, activity
from shoestring.surgery.edits.random_pruning import RandomPruning
from tests.surgery.test_every_pruning import evidence, logits, made


def blocks(model: Transformer) -> Any:
    """The layers, whose parts are known here."""
    return model.blocks


def loss_of(model: Transformer) -> float:
    text = torch.cat([batch.inputs.values for batch in evidence().text])
    with torch.no_grad():
        return float(F.cross_entropy(model(text).flatten(0, 1), text.flatten()))


def test_mini_llm_is_magnitude_times_activation_times_slope() -> None:
    model, of = made("llama"), evidence()
    one = mini_llm.MiniLLMPruning(hidden=0.5, directions=3, epsilon=1e-3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    scores, spent = one.scores(model, of, ["hidden"])
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert spent.calls == 2 + 2 * 3 * 2
    names = [f"blocks.{layer}.channel_mixer.output.weight" for layer in range(3)]
    slopes = {n: torch.zeros_like(before[n]) for n in names}
    for direction in range(3):
        generator = torch.Generator().manual_seed(of.seed * 8191 + direction)
        z = {n: torch.randn(before[n].shape, generator=generator) for n in names}
        ends = []
        for side in (1, -1):
            moved = made("llama")
            moved.load_state_dict({**before, **{n: before[n] + side * 1e-3 * z[n] for n in names}}, strict=False)
            ends.append(loss_of(moved))
        for n in names:
            slopes[n] += (ends[0] - ends[1]) / 2e-3 / 3 * z[n]
    read: dict[str, list[Tensor]] = {n: [] for n in names}
    for layer, n in enumerate(names):
        module = blocks(model)[layer].channel_mixer.output
        module.register_forward_pre_hook(lambda _, given, n=n: read[n].append(given[0].detach()))
    loss_of(model)
    for layer, n in enumerate(names):
        x = read[n][0].flatten(0, 1)
        wanted = torch.zeros(40)
        for j in range(40):
            for i in range(32):
                wanted[j] += before[n][i, j].abs() * x[:, j].norm() * slopes[n][i, j].abs()
        torch.testing.assert_close(scores["hidden", layer], wanted, atol=0.02, rtol=0.05)


def test_the_estimated_slope_is_the_slope() -> None:
    model, of = made("llama"), evidence()
    name = "blocks.1.channel_mixer.output"
    found, _ = mini_llm.MiniLLMPruning(hidden=0.5, directions=60).slopes(model, of, [name])
    text = torch.cat([batch.inputs.values for batch in of.text])
    F.cross_entropy(model(text).flatten(0, 1), text.flatten()).backward()
    exact = model.get_parameter(f"{name}.weight").grad
    assert exact is not None
    assert float(F.cosine_similarity(found[name].flatten(), exact.flatten(), dim=0)) > 0.15


def test_learnt_masks_come_to_the_shape_and_let_go_of_what_does_nothing() -> None:
    model = made("llama")
    with torch.no_grad():
        for block in blocks(model):  # the second half of the features write nothing
            block.channel_mixer.output.weight[:, 20:] = 0
    one = sheared_llama.ShearedLLaMA(hidden=0.5, steps=150, rate=0.15, multiple=4)
    scores, spent = one.scores(model, evidence(), ["hidden"])
    for layer in range(3):
        marks = scores["hidden", layer]
        stay = sheared_llama._expected(marks).mean()
        assert float(stay) == pytest.approx(0.5, abs=0.12)
        assert marks[:20].mean() > marks[20:].mean()
    assert spent.calls == 150
    assert all(p.requires_grad for p in model.parameters())


def test_a_hard_concrete_mask_is_as_often_open_as_is_expected() -> None:
    marks = torch.linspace(-2, 2, 5)
    drawn = torch.stack([sheared_llama._drawn(marks, torch.Generator().manual_seed(n)) for n in range(3000)])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    wanted = [1 / (1 + math.exp(-(float(a) - 2 / 3 * math.log(0.1 / 1.1)))) for a in marks]
    torch.testing.assert_close((drawn > 0).float().mean(0), torch.tensor(wanted), atol=0.03, rtol=0)


def test_a_domain_keeps_more_of_the_layers_that_it_uses() -> None:
    model = made("llama")
    with torch.no_grad():
        blocks(model)[0].channel_mixer.gate_up.weight[:30] *= 0.01
    one, kinds = MiniGPTs(hidden=0.5, multiple=4), ["hidden"]
    decision = one.decide(model, evidence())
    found, _ = activity(model, evidence(), kinds)
    relative = {layer: score / score.mean() for (_, layer), score in found.items()}
    threshold = torch.cat(list(relative.values())).sort(descending=True).values[59]
    for row in decision.values["keep"]:
        score = relative[row["layer"]]
        assert abs(len(row["indices"]) - int((score >= threshold).sum())) <= 2
    sizes = [len(row["indices"]) for row in decision.values["keep"]]
    assert sum(sizes) == pytest.approx(60, abs=6)
    assert sizes[0] == min(sizes) < 20


def test_tensors_are_a_sum_of_products_and_of_all_bonds_exact() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 20)
    first, second = split(weight, 1.0)
    assert first.shape[1:] == (3, 4)
    assert second.shape[1:] == (4, 5)
    whole = torch.stack([torch.kron(a, b) for a, b in zip(first, second, strict=True)]).sum(0)
    torch.testing.assert_close(whole, weight, atol=1e-5, rtol=1e-4)
    first, second = split(weight, 0.5)
    assert first.numel() + second.numel() <= 0.5 * weight.numel()
    layer = TensorLinear(first, second, None)
    wanted = torch.stack([torch.kron(a, b) for a, b in zip(first, second, strict=True)]).sum(0)
    torch.testing.assert_close(layer.weight_of(), wanted, atol=1e-5, rtol=1e-4)
    x = torch.randn(2, 3, 20)
    torch.testing.assert_close(layer(x), x @ wanted.T, atol=1e-4, rtol=1e-4)
    # of the best of this rank in the laid-out form, no other is nearer
    laid = weight.view(3, 4, 4, 5).transpose(1, 2).reshape(12, 20)
    values = torch.linalg.svdvals(laid)
    torch.testing.assert_close((weight - wanted).norm(), values[len(first) :].norm(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", ["llama", "qwen3"])
def test_a_clone_keeps_what_lies_in_the_directions_that_stay(tied: str) -> None:
    model, of = made(tied), evidence()
    with torch.no_grad():  # a stream that lies in half of its directions, as trained ones do more or less
        basis = torch.linalg.qr(torch.randn(32, 16)).Q
        model.embedding.weight.copy_(model.embedding.weight @ basis @ basis.T)
        for block in blocks(model):
            for mixer in (block.token_mixer, block.channel_mixer):
                mixer.output.weight.copy_(basis @ basis.T @ mixer.output.weight)
        for n, parameter in model.named_parameters():
            if n.endswith("norm.weight") and "mixer" not in n:
                parameter.fill_(1.3)
    whole, copied = logits(model), {n: p.clone() for n, p in model.state_dict().items()}
    one = LowRankClone(width=0.5, multiple=4)
    small = one.apply(model, one.decide(model, of))
    # the stream lies in what stays: the clone computes the same
    torch.testing.assert_close(logits(small), whole, atol=1e-3, rtol=1e-3)
    projected = [m for m in small.modules() if isinstance(m, ProjectedLinear)]
    assert len(projected) == 12
    assert all(not m.large.requires_grad and m.projection.requires_grad for m in projected)
    assert len({m.projection.data_ptr() for m in projected}) == 12
    other, cut = made(tied), RandomPruning(width=0.5, multiple=4)
    other.load_state_dict(copied)
    assert one.fold(small).about.width == 16
    assert (logits(cut.apply(other, cut.decide(other, of))) - whole).abs().max() > 0.1


def test_one_token_reads_only_what_is_open() -> None:
    model = made("qwen3")
    one = CATS(sparsity=0.6)
    decision = one.decide(model, evidence())
    gates: list[Tensor] = []
    for block in blocks(model):
        block.channel_mixer.gate_up.register_forward_hook(lambda _, __, out: gates.append(out.detach()))
    loss_of(model)
    for layer, threshold in enumerate(decision.values["thresholds"].values()):
        shut = F.silu(gates[layer].chunk(2, -1)[0]).abs() < threshold
        assert float(shut.float().mean()) == pytest.approx(0.6, abs=0.02)
    small = one.apply(made("qwen3"), decision)
    ids = torch.arange(12).view(1, 12) % 30
    whole = logits(small)
    cache: Any = small.new_cache(1, 12)
    with torch.no_grad():
        for place in range(12):
            reading = small.read(Inputs(ids[:, place : place + 1]), cache)
            torch.testing.assert_close(reading.logits()[:, 0], whole[:, place], atol=1e-4, rtol=1e-4)
    gate = next(m for m in small.modules() if isinstance(m, ThresholdedGate))
    seen: list[int] = []
    original = Tensor.index_select

    def counted(self: Tensor, dim: int, index: Tensor) -> Tensor:
        seen.append(len(index))
        return original(self, dim, index)

    x = torch.randn(1, 1, 32)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "index_select", counted)
        alone = gate(x)
    opened = int((F.silu(gate.gate_up(x).chunk(2, -1)[0]).abs() >= gate.threshold).sum())
    assert seen == [opened, opened]
    torch.testing.assert_close(alone, gate(torch.cat([x, x], 1))[:, :1], atol=1e-5, rtol=1e-4)


def test_copies_share_what_a_feature_writes_unequally() -> None:
    model = made("gpt_neox")
    before = blocks(model)[0].channel_mixer.output.weight.detach().clone()
    one = GrowHidden(factor=1.5, multiple=4)
    decision = one.decide(model, evidence())
    one.apply(model, decision)
    places, shares = decision.tensors["0.features"], decision.tensors["0.shares"]
    weight = blocks(model)[0].channel_mixer.output.weight.detach()
    for feature in range(40):
        copies = places == feature
        assert float(shares[copies].sum()) == pytest.approx(1)
        torch.testing.assert_close(weight[:, copies].sum(1), before[:, feature], atol=1e-5, rtol=1e-4)
    assert len(places) == 60
    assert shares[40:].unique().numel() > 10


def test_the_scores_of_minitron_beat_chance_on_what_matters() -> None:
    model = made("llama")
    with torch.no_grad():
        for block in blocks(model):
            block.channel_mixer.gate_up.weight[:20] *= 0.02
    for row in Minitron(hidden=0.5, multiple=4).decide(model, evidence()).values["keep"]:
        assert min(row["indices"]) >= 20
