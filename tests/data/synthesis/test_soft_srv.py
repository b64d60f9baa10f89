"""Vectors that a small network makes of a sample: read as they should be, learnt, and texts behind them that go on after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from shoestring.base.opened import Opened, Provenance
from shoestring.base.prefix_author import ModelPrefixAuthor
from shoestring.base.writer import Writer
from shoestring.config import Choice, build
from shoestring.contract.author import AuthoredText, PrefixAuthor
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.data.bpe import byte_tokenizer
from shoestring.data.curation.account import Account, OutOfTime
from shoestring.data.synthesis.methods.soft_srv import SoftSRV
from shoestring.data.synthesis.prefix_network import FILE, PrefixNetwork
from shoestring.data.synthesis.synthesise import GROUP, Instruction, synthesise
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.wrapped import Wrapped
from tests.data.curation.texts import opened

END, CONTEXT = 256, 96
TEXTS = [("abcabdabe " if number % 2 else "xyzxywxyv ") * 3 + f"{number:02d}" for number in range(20)]
OPTIONS: dict[str, Any] = {
    "author": "made", "length": 4, "hidden": 16, "steps": 40, "batch": 6, "rate": 0.02, "passage": 40, "shortest": 10,
    "tokens": 32, "least": 0.0, "copied": 0.9,
}  # fmt: skip


def native() -> LanguageModule:
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 257, "context": CONTEXT}
    made = Transformer(build(ModelConfig, sizes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made.eval()


def hugging_face() -> LanguageModule:
    import transformers

    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT)
    return Wrapped(transformers.GPT2LMHeadModel(config)).eval()


def taught(model: LanguageModule) -> LanguageModule:
    """The model, which has learnt both kinds of `TEXTS`, and not which one is to come."""
    rows = torch.tensor([[*text.encode(), END] for text in TEXTS])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(120):
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


MODELS = {"native": native, "gpt2": hugging_face}


def author(make: Callable[[], LanguageModule] = native) -> ModelPrefixAuthor:
    tokenizer = TextTokenizer(byte_tokenizer().rules, end=END)
    return ModelPrefixAuthor(Writer.of(Opened(make(), tokenizer, Provenance("made", "test", "ab"))))


def account(one: PrefixAuthor, checks: int | None = None) -> Account:
    """checks: how often it says that there is time left; None: always."""
    times = iter(range(1 << 30))
    return Account(
        None if checks is None else checks + 0.5, now=lambda: next(times), open_prefix_author=lambda place: one
    )


def made(**more: Any) -> Choice:
    return Choice.of("data", "soft_srv", kind="synthesis", **{**OPTIONS, **more})


@pytest.mark.parametrize("name", MODELS)
def test_vectors_stand_in_the_place_of_tokens(name: str) -> None:
    """Where they are the embeddings of tokens, all is as after these tokens, for each row its own."""
    one, plain = author(MODELS[name]), MODELS[name]()
    begins = torch.tensor([[7, 8, 9], [100, 3, 50]])
    vectors = one.prefix.base(begins).detach().requires_grad_(True)
    texts, summed, told = ["abc", "a longer text"], 0.0, 0
    for begin, text in zip(begins.tolist(), texts, strict=True):
        ids = [*begin, *text.encode(), END]
        logits = plain(torch.tensor([ids[:-1]])).detach()
        summed += float(F.cross_entropy(logits[0, 2:], torch.tensor(ids[3:]), reduction="sum"))
        told += len(text) + 1
    loss, spent = one.loss(vectors, texts, 32)
    assert float(loss.detach()) == pytest.approx(summed / told, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert gradient.abs().amax(-1).min() > 0
    assert spent.tokens == told
    forward = one.model.cost(Shape(2, 3 + 13, outputs=14)).flops
    assert 1.5 * forward < spent.flops < 3 * forward  # no gradients of weights, and those of all inputs
    answers = one.written(vectors.detach(), [1, 2], 6, 0)
    for begin, answer in zip(begins.tolist(), answers.texts, strict=True):
        ids = list(begin)
        while len(ids) < 9 and ids[-1] != END:
            ids.append(int(plain(torch.tensor([ids]))[0, -1].argmax()))
        assert answer.text == one.writer.tokenizer.decode([i for i in ids[3:] if i != END]).strip()
    found, _ = one.summaries(texts, 32)
    alone = plain.read(Inputs(torch.tensor([list(b"abc")]))).hidden[0].mean(0)
    torch.testing.assert_close(found[0], alone.detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="set length or tokens smaller"):
        one.written(vectors.detach(), [1, 2], CONTEXT, 1.0)


def test_the_network_is_the_formula() -> None:
    summaries = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 2
    network = PrefixNetwork(summaries, 3, 4, torch.ones(2), 0.5, seed=1).double()
    with torch.no_grad():
        network.inner_bias.normal_()
        got = network(summaries)
        for row in range(5):
            z = (summaries[row] - summaries.mean(0)) / ((summaries - summaries.mean(0)) ** 2).mean(0).sqrt()
            for k in range(3):
                inner = torch.stack([torch.tanh(network.inner[k, h] @ z + network.inner_bias[k, h]) for h in range(4)])
                expected = network.outer[k] @ inner + network.outer_bias[k]
                torch.testing.assert_close(got[row, k], expected)
    assert network.flops(5, False) == 5 * 2 * (3 * 4 * 6 + 3 * 2 * 4)


@pytest.mark.parametrize("name", MODELS)
def test_reconstruction_is_learnt_and_texts_are_like_their_samples(name: str, tmp_path: Path) -> None:
    one = author(lambda: taught(MODELS[name]()))
    books = account(one)
    before = {key: tensor.clone() for key, tensor in one.model.state_dict().items()}
    method = SoftSRV(**OPTIONS)
    documents = opened(TEXTS, tmp_path)
    summaries, _ = one.summaries(TEXTS, 32)
    centre, spread = one.embeddings
    begun = PrefixNetwork(summaries, 4, 16, centre, spread, 0).requires_grad_(False)
    first = float(one.loss(begun(summaries), TEXTS, 32)[0])
    network, spent = method.training.trained(one, TEXTS, tmp_path, books)
    last = float(one.loss(network(summaries), TEXTS, 32)[0])
    others = float(one.loss(network(summaries.roll(1, 0)), TEXTS, 32)[0])
    assert last < 0.8 * first
    assert last < others - 0.05  # it is of each text its own vectors
    assert spent.tokens == 40 * 6 * 32
    assert all(torch.equal(tensor, before[key]) for key, tensor in one.model.state_dict().items())
    found = synthesise(documents, made(each=2, copied=1.0), account(one), tmp_path)
    rows = list(found.rows())
    assert len(rows) == found.kept == 2 * len(TEXTS)
    assert all(row["seed_text"] in TEXTS[row["number"]] for row in rows)
    assert len({row["text"] for row in rows}) > len(TEXTS) // 2
    if name == "native":  # a text is of the kind of its sample
        assert sum(row["text"][:1] == row["seed_text"][:1] for row in rows) > 0.8 * len(rows)
    fewer = synthesise(documents, made(each=2), account(one), tmp_path)
    assert fewer.dropped["nearly a text that is there"] == found.kept - fewer.kept > 0
    texts = [row["text"] for row in fewer.rows()]
    assert len(set(texts)) == len(texts) > 0


def test_work_goes_on_after_a_kill(tmp_path: Path) -> None:
    books = account(author())
    whole = synthesise(opened(TEXTS, tmp_path / "a"), made(), books, tmp_path / "a")
    assert books.spent.as_dict() == whole.spent
    assert whole.spent["tokens"] == 40 * 6 * 32
    # stopped in the training, then after the first group of texts, then finished
    told = []
    for checks in (15, 40 - 14 + 1, None):
        books = account(author(), checks)
        try:
            found = synthesise(opened(TEXTS, tmp_path / "b"), made(), books, tmp_path / "b")
        except OutOfTime:
            told.append(books.spent)
        else:
            told.append(books.spent)
    assert len(told) == 3
    assert [one.tokens for one in told] == [14 * 6 * 32, 26 * 6 * 32, 0]
    assert list(found.rows()) == list(whole.rows())
    assert found.spent == whole.spent
    assert sum(one.written for one in told) == whole.spent["written"] > told[2].written > 0
    network = next((tmp_path / "b").rglob(FILE))
    network.write_bytes(b"{")
    with pytest.raises(ShoestringError, match="delete it and it will be made anew"):
        synthesise(opened(TEXTS, tmp_path / "b"), made(), account(author()), tmp_path / "b")
    assert len(found.parts) == -(-len(TEXTS) // GROUP)


def test_near_copies_and_what_does_not_go_together_are_refused(tmp_path: Path) -> None:
    method = SoftSRV(author="made", copied=0.5, least=0.1)
    asked = Instruction("", "one two three four five six seven eight nine ten", "like it, 1")
    assert method.fault(asked, AuthoredText("one", False)) == "too short"
    text = "one two three four five six seven eight nine"
    assert method.fault(asked, AuthoredText(text, True)) == ""
    method.remember(text)
    assert (
        method.fault(asked, AuthoredText("And one two three four five six seven eight", True))
        == "nearly a text that is there"
    )
    assert method.fault(asked, AuthoredText("one two three four five thirty forty fifty", True)) == ""
    with pytest.raises(UsageError, match="are one text"):
        SoftSRV(author="made", each=2, temperature=0)
    with pytest.raises(UsageError, match="set shortest smaller"):
        synthesise(opened(["short"], tmp_path), made(), account(author()), tmp_path)
    with pytest.raises(UsageError, match="give open_prefix_author"):
        synthesise(opened(TEXTS, tmp_path), made(), Account(), tmp_path)
