"""Every objective with a teacher: its loss and gradient are those of its formula, and all that it computes is charged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.ledger import MODEL
from shoestring.config import build
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.objective import At, Taught
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.model.wrapped import Wrapped
from shoestring.objective import teachers
from shoestring.objective.cross_entropy import plain
from shoestring.objective.minillm import ROLLOUT, MiniLLM
from shoestring.objective.sortednet import SortedNet
from shoestring.objective.teachers import TEACHER
from tests.flop_counting import CPU_ATTENTION


def made(seed: int, width: int = 16, layers: int = 2, heads: int = 2) -> Transformer:
    torch.manual_seed(seed)
    sizes = {"layers": layers, "width": width, "heads": heads, "head_width": 8, "hidden": 24}
    model = Transformer(build(ModelConfig, {**sizes, "vocabulary": 30, "context": 24}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=0.3)
    return model


def batch(weighted: bool = False) -> Batch:
    torch.manual_seed(5)
    ids = torch.randint(30, (4, 20))
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORED
    return Batch(Inputs(ids), targets, torch.rand(4, 20) if weighted else None)


def places(of: Batch) -> list[tuple[int, int, float]]:
    """Row, place and weight of all that counts."""
    weights = torch.ones(of.targets.shape) if of.weights is None else of.weights
    there = [(r, t) for r in range(of.rows) for t in range(of.inputs.length) if of.targets[r, t] != IGNORED]
    return [(r, t, float(weights[r, t])) for r, t in there]


def mean(of: Batch, each: Callable[[int, int], Tensor]) -> Tensor:
    found = places(of)
    return torch.stack([w * each(r, t) for r, t, w in found]).sum() / sum(w for _, _, w in found)


def text(student: Transformer, of: Batch) -> Tensor:
    logits = student(of.inputs.values)
    return mean(of, lambda r, t: F.cross_entropy(logits[r, t], of.targets[r, t]))


def from_mean(student: Transformer, known: list[Transformer], of: Batch, tau: float) -> Tensor:
    ours, theirs = student(of.inputs.values), [one(of.inputs.values) for one in known]

    def each(r: int, t: int) -> Tensor:
        p = torch.stack([(one[r, t] / tau).softmax(0) for one in theirs]).mean(0)
        return (p * (p / (ours[r, t] / tau).softmax(0)).log()).sum()

    return mean(of, each)


def ensemble(student: Transformer, known: list[Transformer], of: Batch) -> Tensor:
    return 0.4 * 4 * from_mean(student, known, of, 2.0) + 0.6 * text(student, of)


def early(student: Transformer, known: list[Transformer], of: Batch) -> Tensor:
    return 0.3 * from_mean(student, known, of, 1.0) + 0.7 * text(student, of)


def states(model: Transformer, of: Batch) -> list[Tensor]:
    found = [model.embedding(of.inputs.values)]
    cos, sin = model.rotary(0, of.inputs.length, None)
    for block in model.blocks:
        found.append(block(found[-1], cos, sin))
    return found


def hidden_states(student: Transformer, known: list[Transformer], of: Batch) -> Tensor:
    ours, theirs = states(student, of)[1:], states(known[0], of)[1:]
    total = torch.zeros(())
    for layer, one in enumerate(ours):
        other = theirs[round((layer + 1) * len(theirs) / len(ours)) - 1]
        if one.shape != other.shape:  # weighted least squares: rows times the root of their weights
            weights = torch.zeros(of.targets.shape)
            for r, t, w in places(of):
                weights[r, t] = w
            root = weights.flatten().sqrt()[:, None]
            left, right = one.detach().flatten(0, 1) * root, other.flatten(0, 1) * root
            ridge = (1e-4 * (left.T @ left).diagonal().mean()).sqrt() * torch.eye(left.shape[1])
            fit = torch.linalg.lstsq(torch.cat([left, ridge]), torch.cat([right, torch.zeros(16, 24)])).solution
            one = one @ fit
        away, there = one, other
        total = total + mean(of, lambda r, t, a=away, b=there: (a[r, t] - b[r, t]).square().mean())  # type: ignore[misc]
    return total / len(ours) + 0.5 * from_mean(student, known, of, 1.0)


def relations(student: Transformer, known: list[Transformer], of: Batch) -> Tensor:
    def parts(model: Transformer) -> list[Tensor]:
        block = model.blocks[-1]
        x = states(model, of)[-2]
        made = block.token_mixer.qkv(block.token_norm(x))  # type: ignore[union-attr, operator]
        return list(made.split(made.shape[-1] // 3, -1))

    total = torch.zeros(())
    for ours, theirs in zip(parts(student), parts(known[0]), strict=True):
        for head in range(2):

            def row(x: Tensor, r: int, t: int, head: int = head) -> Tensor:
                d = x.shape[-1] // 2
                part = x[r, : t + 1, head * d : (head + 1) * d]
                return (part[t] @ part.T / d**0.5).log_softmax(0)

            def each(r: int, t: int, ours: Tensor = ours, theirs: Tensor = theirs) -> Tensor:
                p = row(theirs, r, t)
                return (p.exp() * (p - row(ours, r, t))).sum()

            total = total + mean(of, each) / 6
    return total + text(student, of)


def cloned(student: Transformer, known: list[Transformer], of: Batch) -> Tensor:
    def written(model: Transformer) -> list[list[Tensor]]:
        found, x = [], states(model, of)
        for block, before in zip(model.blocks, x, strict=False):
            qkv = block.token_mixer.qkv(block.token_norm(before))  # type: ignore[union-attr, operator]
            cos, sin = model.rotary(0, of.inputs.length, None)
            middle = before + block.token_mixer(block.token_norm(before), cos, sin, None, None)  # type: ignore[operator]
            found.append([qkv, block.channel_mixer.gate_up(block.channel_norm(middle))])  # type: ignore[union-attr, operator]
        return found

    total = torch.zeros(())
    for ours, theirs in zip(written(student), written(known[0]), strict=True):
        pairs = list(zip(ours, theirs, strict=True))
        total = (
            total
            + torch.stack(
                [mean(of, lambda r, t, a=a, b=b: (a[r, t] - b[r, t]).square().mean()) for a, b in pairs]  # type: ignore[misc]
            ).mean()
        )
    return 0.2 * total + from_mean(student, known, of, 1.0) + text(student, of)


def own_texts(student: Transformer, known: list[Transformer], of: Batch) -> Tensor:
    objective = MiniLLM(plain, prompt=4, written=5, weight=0.6)
    texts, _ = objective._written(student, known[0], of.inputs.values[:, :4], At(step=3))
    q, p = student(texts[:, :-1]).log_softmax(-1), known[0](texts[:, :-1]).log_softmax(-1)
    total = torch.zeros(())
    for r in range(len(texts)):
        own = [q[r, t, texts[r, t + 1]] for t in range(3, 8)]
        taught = [p[r, t, texts[r, t + 1]] for t in range(3, 8)]
        for t in range(5):
            share = own[t].exp() / (0.2 * taught[t].exp() + 0.8 * own[t].exp())
            after = [float((taught[u] - own[u]).detach()) for u in range(t + 1, 5)]
            reward = sum(after) / len(after) if after else 0.0
            single = (q[r, t + 3].exp() * (q[r, t + 3] - p[r, t + 3])).sum()
            total = total + share.detach() * (single - reward * own[t])
    return 0.6 * total / (len(texts) * 5) + 0.4 * text(student, of)


def nested(student: Transformer, known: list[Transformer], of: Batch) -> Tensor:
    depth, hidden = SortedNet(plain, depth=(0.5,), hidden=(0.5,)).drawn(At(step=3))
    x = student.embedding(of.inputs.values)
    cos, sin = student.rotary(0, of.inputs.length, None)
    for block in list(student.blocks)[: round(depth * 2)]:
        x = x + block.token_mixer(block.token_norm(x), cos, sin, None, None)  # type: ignore[operator]
        gate, up = block.channel_mixer.gate_up(block.channel_norm(x)).chunk(2, -1)  # type: ignore[union-attr, operator]
        kept = round(hidden * gate.shape[-1])
        inner = (F.silu(gate) * up)[..., :kept]
        x = x + inner @ block.channel_mixer.output.weight[:, :kept].T  # type: ignore[union-attr, index]
    logits = student.norm(x) @ student.embedding.weight.T
    return mean(of, lambda r, t: F.cross_entropy(logits[r, t], of.targets[r, t]))


@dataclass(frozen=True)
class Case:
    """slowly: the loss as the formula has it, of (student, teachers, batch). options: of the objective. widths: of the teachers."""

    slowly: Callable[[Transformer, list[Transformer], Batch], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    widths: tuple[int, ...] = (16,)
    layers: int = 2
    weighted: bool = True
    solves: bool = False
    """Whether it solves equations, which torch's counter of operations does not know."""


CASES = {
    "baby_llama": Case(ensemble, {"teachers": ("a", "b"), "weight": 0.4}, widths=(16, 24)),
    "salt": Case(early, {"until": 0.5, "weight": 0.3}),
    "hidden_states": Case(hidden_states, {"logits": 0.5}, layers=4),
    "hidden_states, wider": Case(hidden_states, {"logits": 0.5}, widths=(24,), layers=4, solves=True),
    "attention_relations": Case(relations, {"heads": 2}, widths=(24,)),
    "activation_clone": Case(cloned, widths=(24,)),
    "minillm": Case(own_texts, {"prompt": 4, "written": 5, "weight": 0.6}, widths=(24,), weighted=False),
    "sortednet": Case(nested, {"depth": (0.5,), "hidden": (0.5,)}, widths=()),
}
ELSEWHERE = {
    "didi_instruct",
    "masked_diffusion",
    "masked_input",
    "replaced_tokens",
    "length_adaptive",
    "tinyllm",
    "cross_model_control",
    "headless",
    "multi_token",
    "early_exits",
    "distillation",
    "next_token",
    "minifinetuning",
}
AT = At(step=3, progress=0.1)


def objective(name: str) -> Any:
    (card,) = [one for one in methods("objective") if one.name == name.split(",")[0]]
    return card.target(plain, **CASES[name].options)


def prepared(name: str) -> tuple[Any, Transformer, list[Transformer]]:
    case, one = CASES[name], objective(name)
    known = [made(2 + n, width, case.layers).requires_grad_(False) for n, width in enumerate(case.widths)]
    if known:
        assert isinstance(one, Taught)
        assert len(one.teachers) == len(known)
        one.learn_from(*known)
    return one, made(1), known


def test_every_objective_has_a_place_in_a_table() -> None:
    assert {card.name for card in methods("objective", "")} == {name.split(",")[0] for name in CASES} | ELSEWHERE


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(teachers, "LOGITS", 7 * 30)  # blocks of seven places
    one, student, known = prepared(name)
    of = batch(CASES[name].weighted)
    loss = one(student, of, AT)
    loss.mean.backward()
    found = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    wanted = CASES[name].slowly(student, known, of)
    wanted.backward()
    if name != "minillm":  # whose value is no loss: its gradient is what counts
        torch.testing.assert_close(loss.mean, wanted, atol=1e-5, rtol=1e-4)
    for n, p in student.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found.get(n, torch.zeros_like(p)), p.grad, atol=2e-5, rtol=1e-3)
    assert one.count(of) == pytest.approx(sum(w for _, _, w in places(of)))


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_computed_is_charged(name: str) -> None:
    one, student, known = prepared(name)
    for model in (student, *known):
        with torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.int64))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = one(student, batch(), AT)
        loss.mean.backward()
    stated = sum(charge.flops for charge in loss.spent.values())
    if CASES[name].solves:
        assert counter.get_total_flops() < stated < 1.2 * counter.get_total_flops()
    else:
        assert stated == pytest.approx(counter.get_total_flops(), rel=0.002)
    assert (TEACHER in loss.spent) == bool(known)
    if known:
        assert loss.spent[TEACHER].calls >= len(known)
        assert loss.spent[TEACHER].flops > 0
    assert set(loss.spent) <= {MODEL, TEACHER, ROLLOUT}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.widths])
def test_without_a_teacher_there_is_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="no teacher"):
        objective(name)(made(1), batch(), AT)


def test_salt_leaves_its_teacher_when_it_said_so() -> None:
    one, student, _ = prepared("salt")
    late = one(student, batch(), At(progress=0.5))
    assert TEACHER not in late.spent
    torch.testing.assert_close(late.mean, text(student, batch()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("attention_relations", "equal parts"),
        ("activation_clone", "as many heads"),
        ("hidden_states, wider", "at once"),
    ],
)
def test_what_does_not_fit_is_said(name: str, said: str) -> None:
    one, student, _ = prepared(name)
    one.heads = 5
    one.learn_from(made(3, width=24, heads=4 if name == "activation_clone" else 2))
    few = batch().take(slice(0, 1))
    with pytest.raises(UsageError, match=said):
        one(student, few, AT)


def stock(seed: int, layers: int = 2) -> Wrapped:
    """A Gemma-like model of transformers' own code, of the same tokens."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    torch.manual_seed(seed)
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 24, "sliding_window": 8}
    return Wrapped(AutoModelForCausalLM.from_config(Gemma2Config(**sizes, **heads), attn_implementation="eager"))


NEED_PARTS = {"attention_relations", "activation_clone", "sortednet"}
"""Objectives that look inside layers, which wrapped models do not tell."""


@pytest.mark.parametrize("name", CASES)
def test_models_of_transformers_learn_and_teach_too(name: str) -> None:
    one, student = objective(name), stock(1)
    if CASES[name].widths:
        known = [stock(2), made(3)][: len(CASES[name].widths)]
        one.learn_from(*(teacher.requires_grad_(False) for teacher in known))
    if name in NEED_PARTS:
        with pytest.raises(UsageError, match=r"does not tell|tells which|no axis"):
            one(student, batch(), AT)
        return
    loss = one(student, batch(), AT)
    loss.mean.backward()
    assert bool(loss.mean.isfinite())
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in student.parameters())


@pytest.mark.parametrize("name", ["attention_relations", "sortednet"])
def test_compiled_layers_are_looked_into_all_the_same(name: str) -> None:
    one, student, _ = prepared(name)
    wanted = one(student, batch(), AT).mean
    for block in student.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        student.read(batch().inputs)  # traced before there is a hook
    torch.testing.assert_close(one(student, batch(), AT).mean, wanted)
    assert all(vars(block)["_compiled_call_impl"] is not None for block in student.blocks)
