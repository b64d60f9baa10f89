"""Layers that are left out: later tokens find the keys of all before them, and nothing is computed twice."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import Depth
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.depth import RowDepth, Through
from shoestring.decode.depths.dr_llm import DrLLM
from shoestring.decode.depths.ffn_skipllm import FFNSkipLLM
from shoestring.decode.depths.skip_decode import SkipDecode
from shoestring.decode.drafters.ngram import NGram
from shoestring.decode.layer_routers import LayerRouters
from shoestring.decode.row import Row
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.store import PagedStore, Store
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.model.block import Block
from tests.decode.random_models import CONTEXT, VOCABULARY, prompts, wrapped

GREEDY = Sampling(temperature=0)


def deep(layers: int = 6) -> Transformer:
    torch.manual_seed(2)
    made = Transformer(
        build(ModelConfig, {"layers": layers, "width": 32, "heads": 4, "vocabulary": VOCABULARY, "context": CONTEXT})
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.requires_grad_(False).eval()


def routed(model: Transformer, folder: Path) -> DrLLM:
    """With routers at random, some of which skip."""
    torch.manual_seed(5)
    routers = LayerRouters(6, 32)
    with torch.no_grad():
        routers.second.normal_(std=0.3)
        routers.bias[0, 1] = 9.0
    routers.save(folder / "routers")
    return DrLLM(model, folder / "routers")


DEPTHS: dict[str, Callable[[Transformer, Path], RowDepth]] = {
    "skip_decode": lambda model, _: SkipDecode(model, most=1.0, least=0.34, warm=1),
    "dr_llm": routed,
    "ffn_skipllm": lambda model, _: FFNSkipLLM(model, similarity=0.75, most=0.34, cold=1, warm=2),
}


def test_every_depth_stands_in_the_table() -> None:
    assert {card.name for card in methods("decode", "depth")} == set(DEPTHS)


def settled_pass(model: Transformer, tokens: Sequence[int], rule: FFNSkipLLM, prompt: int) -> torch.Tensor:
    """Logits after the last token, without a cache: layer by layer and place by place, feed-forward blocks left out as the paper's
    rule says."""
    length = len(tokens)
    x = model.embedding(torch.tensor([list(tokens)]))
    cos, sin = model.rotary(0, length, None)
    settled, left = [False] * length, [rule.most] * length
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        x = x + block.token_mixer(block.token_norm(x), cos, sin, None, None)
        inside = rule.cold <= index < rule.total - rule.cold
        for place in range(length):
            if inside and settled[place] and left[place]:
                left[place] -= 1
                continue
            before = x[0, place]
            after = before + block.channel_mixer(block.channel_norm(before))
            cosine = float(before @ after / (before.norm() * after.norm()))
            if inside and place >= prompt + rule.warm and cosine >= rule.similarity:
                settled[place] = True
            x[0, place] = after
    logits: torch.Tensor = model.norm(x[0, -1]) @ model.get_output_embeddings().weight.T
    return logits


def masked_pass(model: Transformer, tokens: Sequence[int], sets: Sequence[frozenset[int] | None]) -> torch.Tensor:
    """Logits after the last token, without a cache: layer by layer, a token that leaves a layer out keeps its state there, and the
    others do not see it."""
    length = len(tokens)
    x = model.embedding(torch.tensor([list(tokens)]))
    cos, sin = model.rotary(0, length, None)
    for index, block in enumerate(model.blocks):
        inside = torch.tensor([each is None or index in each for each in sets])
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        seen = (causal & inside[None, :]) | torch.eye(length, dtype=torch.bool)
        changed = block(x, cos, sin, seen[None, None])
        x = torch.where(inside[None, :, None], changed, x)
    logits: torch.Tensor = (
        model.get_output_embeddings()(model.norm(x[:, -1]))
        if model.head is not None
        else (model.norm(x[:, -1]) @ model.embedding.weight.T)
    )
    return logits[0]


def reference(model: Transformer, depth: RowDepth, prompt: tuple[int, ...], count: int) -> list[int]:
    row = Row(1, 1, Request(prompt, GREEDY, count), 0, list(prompt), 0.0)
    while row.left and len(row.tokens) <= CONTEXT:
        if isinstance(depth, FFNSkipLLM):
            row.tokens.append(int(settled_pass(model, row.tokens, depth, len(prompt)).argmax()))
            continue
        sets = [depth.layers(row, place) for place in range(len(row.tokens))]
        row.tokens.append(int(masked_pass(model, row.tokens, sets).argmax()))
    return row.tokens[len(prompt) :]


@pytest.mark.parametrize("kind", ["paged", "separate", "narrow"])
@pytest.mark.parametrize("name", DEPTHS)
def test_answers_are_those_of_a_pass_without_a_cache(name: str, kind: str, tmp_path: Path) -> None:
    """In rows of any places, in little room where rows are read again, and with samples that share a prompt."""
    model = deep()
    depth = DEPTHS[name](model, tmp_path)
    texts = prompts(6, seed=3)
    expected = [reference(model, depth, text, 12) for text in texts]
    stores: dict[str, Callable[[], Store]] = {
        "paged": lambda: PagedStore(model, 60, 4),
        "separate": lambda: SeparateStore(model, 12 * CONTEXT, 4),
        "narrow": lambda: PagedStore(model, 14, 4),
    }
    store = stores[kind]()
    engine = Engine(model, store=store, rows=4, tokens=16, depth=depth)
    samples = 2 if kind == "paged" else 1
    got = list(engine.run([Request(text, GREEDY, 12, samples=samples) for text in texts]))
    assert len(got) == 6 * samples
    for each in got:
        assert list(each.tokens) == expected[each.number - 1]
    assert store.free == store.capacity
    full = Engine(model, rows=4)
    assert [each.tokens for each in full.run([Request(texts[0], GREEDY, 12)])] != [tuple(expected[0])]
    if isinstance(depth, FFNSkipLLM):
        assert 0.05 < depth.share < 0.5
    if kind == "narrow":
        assert sum(each.spent.charge.wasted for each in got) > 0


def test_a_text_that_left_layers_out_lends_its_blocks_to_nobody() -> None:
    model = deep()
    depth = SkipDecode(model, most=0.5, least=0.5, warm=1)
    engine = Engine(model, store=PagedStore(model, 40, 4), rows=2, depth=depth)
    (first,) = engine.run([Request(tuple(range(8)), GREEDY, 20)])
    (second,) = engine.run([Request((*range(8), *first.tokens), GREEDY, 3)])
    assert second.spent.charge.reused == 8
    alone = Engine(model, store=PagedStore(model, 40, 4), rows=2, depth=depth)
    assert [each.tokens for each in alone.run([Request((*range(8), *first.tokens), GREEDY, 3)])] == [second.tokens]


def test_channels_that_are_left_out_are_not_paid_for_and_their_blocks_are_lent_to_nobody() -> None:
    model = deep()
    saved = []
    for similarity in (-1.0, 1.0):
        depth = FFNSkipLLM(model, similarity=0.0, most=0.5, cold=1, warm=0)
        depth.similarity = similarity  # all settle at once, or none does
        engine = Engine(model, store=PagedStore(model, 40, 4), rows=2, depth=depth)
        (first,) = engine.run([Request(tuple(range(8)), GREEDY, 20)])
        (second,) = engine.run([Request((*range(8), *first.tokens), GREEDY, 3)])
        saved.append((first.spent.charge.flops, first.spent.charge.moved, second.spent.charge.reused, depth.share))
    block = model.blocks[0]
    settled, whole = saved
    # of 19 tokens that were read one by one, 3 of 6 layers left their channels out
    assert whole[0] - settled[0] == 19 * 3 * block.channel_flops()  # type: ignore[operator]
    assert whole[1] - settled[1] == 19 * 3 * block.channel_bytes  # type: ignore[operator]
    assert (settled[2], whole[2]) == (8, 24)
    assert (settled[3], whole[3]) == (0.5, 0.0)


def test_the_schedule_falls_in_a_line_and_bypasses_what_lies_between() -> None:
    depth = SkipDecode(deep(10), most=1.0, least=0.4, warm=2)
    row = Row(1, 1, Request((1, 2, 3), GREEDY, 13), 0, [0] * 16, 0.0)
    sets = [depth.layers(row, place) for place in range(16)]
    assert sets[:4] == [None] * 4
    sizes = [10 if each is None else len(each) for each in sets[3:]]
    assert sizes == [round(10 * (1 - 0.6 * k / 12)) for k in range(13)]
    assert sets[-1] == {0, 1, 8, 9}
    for before, after in itertools.pairwise(sets):
        assert before is None or (after is not None and after <= before)


def test_what_is_left_out_is_not_paid_for() -> None:
    model = deep()
    one = model.blocks[0].flops(Shape(1, 1, 5))  # type: ignore[operator]
    cache = model.new_cache(1, 9)
    model.read(Inputs(torch.tensor([[1, 2, 3, 4, 5]])), cache)
    whole = model.read(Inputs(torch.tensor([[6]])), cache).cost
    cache.crop([5])
    part = model.read(Inputs(torch.tensor([[6]])), cache, depth=Through(frozenset({0, 5}))).cost
    assert whole.flops == 6 * one
    assert part.flops == 2 * one
    assert part.moved < whole.moved * 0.4


def test_a_layer_does_not_come_back() -> None:
    model = deep(3)
    cache = model.new_cache(2, 9)
    some, all_ = Through(frozenset({0, 2})), Through(frozenset({0, 1, 2}))
    model.read(Inputs(torch.tensor([[1, 2], [3, 4]])), cache)
    model.read(Inputs(torch.tensor([[5], [6]])), cache, depth=some)
    with pytest.raises(UsageError, match="layer 1 was left out for tokens that are held already"):
        model.read(Inputs(torch.tensor([[7], [8]])), cache, depth=all_)
    cache.crop([2, 2])  # without the tokens that lack it
    again = model.read(Inputs(torch.tensor([[5], [6]])), cache, depth=all_).hidden
    assert torch.allclose(again[0, 0], model.read(Inputs(torch.tensor([[1, 2, 5]]))).hidden[0, -1], atol=1e-5)

    class Twice(Depth):
        def times(self, layer: int, hidden: torch.Tensor) -> int:
            return 2

    with pytest.raises(UsageError, match="layer 0 cannot be repeated with a cache"):
        model.read(Inputs(torch.tensor([[1], [1]])), cache, depth=Twice())


def test_what_does_not_go_together_is_refused() -> None:
    model = deep(4)
    with pytest.raises(ValueError, match=r"least = 0\.9 is more than most = 0\.5"):
        SkipDecode(model, most=0.5, least=0.9)
    with pytest.raises(UsageError, match="25% of 4 layers leave none above the 1 at the bottom"):
        SkipDecode(model, least=0.25)
    with pytest.raises(UsageError, match="2 whole layers at each end of 4 leave none to leave out"):
        FFNSkipLLM(model, cold=2)
    with pytest.raises(UsageError, match="give a drafter or a depth, not both"):
        Engine(model, depth=SkipDecode(model), drafter=NGram())
    three = wrapped("gpt2", n_layer=3)
    with pytest.raises(UsageError, match="only a native model has a depth"):
        list(Engine(three, depth=SkipDecode(three, most=0.7, least=0.7)).run([Request((1, 2), GREEDY, 5)]))
