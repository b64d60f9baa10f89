"""Cross-model control: the loss by its formula, the shifted model in the engine, tokens put together, and a run that learns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoestring.base import open_model
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.objective import At
from shoestring.data.token_map import nearest_tokens
from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.controlled import Controlled
from shoestring.errors import UsageError
from shoestring.objective.cross_entropy import plain
from shoestring.objective.cross_model_control import TEACHER, CrossModelControl
from tests.decode.random_models import VOCABULARY, native, one_by_one, prompts, wrapped
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring


def test_the_loss_is_that_of_its_formula() -> None:
    template, model = native(1), native(2).requires_grad_(True)
    tokens = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(3))
    targets = tokens.roll(-1, 1)
    targets[0, :4] = IGNORED
    weights = torch.rand(2, 12)
    objective = CrossModelControl(plain, strength=0.5)
    with pytest.raises(UsageError, match="has no template"):
        objective(model, Batch(Inputs(tokens), targets), At())
    objective.learn_from(template)
    found = objective(model, Batch(Inputs(tokens), targets, weights), At())
    chances = (template(tokens) + 0.5 * model(tokens)).log_softmax(-1).detach()
    terms = [
        (-float(weights[r, t]) * float(chances[r, t, targets[r, t]]), float(weights[r, t]))
        for r in range(2)
        for t in range(12)
        if targets[r, t] != IGNORED
    ]
    assert float(found.mean.detach()) == pytest.approx(
        sum(one for one, _ in terms) / sum(w for _, w in terms), rel=1e-4
    )
    found.mean.backward()
    assert all(parameter.grad is None for parameter in template.parameters())
    assert any(float(parameter.grad.abs().sum()) > 0 for parameter in model.parameters() if parameter.grad is not None)
    assert found.spent[TEACHER].flops > 0


@pytest.mark.parametrize("host", ["native", "gpt2"])
def test_a_controlled_model_adds_the_shift_in_every_pass(host: str) -> None:
    one = native(1) if host == "native" else wrapped("gpt2")
    control = native(2)
    tokens: Tensor = (torch.arange(VOCABULARY) + 3) % VOCABULARY
    tokens[5] = -1
    model = Controlled(one, control, tokens=tokens, strength=0.7, filler=1)
    text = torch.tensor([prompts(1)[0]])
    read = torch.where(tokens[text] >= 0, tokens[text], 1)
    with torch.no_grad():
        shift = control(read)[..., tokens.clamp_min(0)]
        shift[..., 5] = 0
        expected = one.read(Inputs(text)).logits() + 0.7 * shift
        torch.testing.assert_close(model.read(Inputs(text)).logits(), expected)
    texts = prompts(3)
    got = {
        answer.number: list(answer.tokens)
        for answer in Engine(model, rows=2).run(Request(each, Sampling(temperature=0), 5) for each in texts)
    }
    assert [got[number] for number in (1, 2, 3)] == [one_by_one(model, each, 5) for each in texts]
    cache = model.new_cache(1, 30)
    before = cache.snapshot()
    first = model.read(Inputs(text), cache).logits()
    cache.restore(before)
    torch.testing.assert_close(model.read(Inputs(text), cache.take(torch.tensor([0]))).logits(), first)
    assert model.cost(Shape(1, 4)).flops == one.cost(Shape(1, 4)).flops + control.cost(Shape(1, 4)).flops
    with pytest.raises(UsageError, match="30 tokens are given for a vocabulary of 40"):
        Controlled(one, control, tokens=tokens[:30])


class Table(TextTokenizer):
    """A tokenizer of which only the table of tokens is asked."""

    def __init__(self, *own: bytes) -> None:
        self._own, self.end, self.vocabulary = own, 0, len(own)

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        return self._own


def test_tokens_go_to_the_nearest_of_which_one_begins_with_the_other() -> None:
    host = Table(b"", b"the", b"them", b"th", b"xyz", b"t", b"")
    other = Table(b"", b"t", b"theme", b"the", b"thesis")
    # the: the same. them: 'the' and 'theme' are as near, and the former is a beginning of it. th: 't' and 'the' likewise
    assert nearest_tokens(host, other).tolist() == [0, 3, 3, 1, -1, 1, -1]
    assert nearest_tokens(other, host, 6).tolist() == [0, 5, 2, 1, 1, -1]


def test_a_run_learns_a_shift_and_shifts_another_model(corpus: Path, tmp_path: Path) -> None:
    words = (f"--data.corpus={corpus}", *TINY)
    for name, seed in (("template", 1), ("host", 2)):
        status, _, errors = shoestring("train", "--budget=4ktok", *words, f"--seed={seed}", "--out", tmp_path / name)
        assert status == 0, errors
    learn = ("--objective=cross_model_control", f"--objective.teacher={tmp_path / 'template'}", "--optim.lr=0.01")
    status, _, errors = shoestring("train", "--budget=8ktok", *words, *learn, "--out", tmp_path / "control")
    assert status == 0, errors
    tokens = torch.tensor([list(corpus_text(corpus)[:33])])

    def loss(place: str) -> float:
        with torch.no_grad():
            logits = open_model(place).model.read(Inputs(tokens[:, :-1])).logits()
        return float(torch.nn.functional.cross_entropy(logits[0].float(), tokens[0, 1:]))

    for host in ("template", "host"):  # that it was trained beside, and another
        assert loss(f"{tmp_path / host}+control:{tmp_path / 'control'}") < loss(str(tmp_path / host)) - 0.1
    status, _shown, errors = shoestring(
        "generate", f"{tmp_path / 'host'}+control:{tmp_path / 'control'}", "Once", "--tokens", "4"
    )
    assert status == 0, errors
    with pytest.raises(UsageError, match=r"write HOST\+control:PLACE"):
        open_model(f"+control:{tmp_path / 'host'}")


def corpus_text(corpus: Path) -> bytes:
    file = corpus if corpus.is_file() else sorted(path for path in corpus.rglob("*") if path.is_file())[0]
    return file.read_bytes()
