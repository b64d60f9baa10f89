"""What the parametrised tests of all parts do not say of sparse mixers, and of memory that goes from segment to segment."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.config import Choice, build
from shoestring.contract.batch import Inputs
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.rotary import Rotary

BASE: dict[str, Any] = {"layers": 3, "width": 16, "heads": 2, "vocabulary": 30, "context": 40}


def made(**changes: Any) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(build(ModelConfig, {**BASE, **changes})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5) if parameter.ndim > 1 else parameter.add_(0.1)
    return model


def mixer(name: str, **options: Any) -> Any:
    torch.manual_seed(2)
    built: Any = Choice.of("model", name, kind="token mixer", **options).build(16, 4, 2, 8)
    built.double().eval()
    torch.nn.init.normal_(built.output.weight, std=0.3)
    return built


@pytest.mark.parametrize("length", [4, 17])
def test_diagonals_and_their_gradients_are_those_of_plain_order_and_of_cells_written_out(length: int) -> None:
    text, found, gradients = torch.randint(30, (2, length)), [], []
    for order in ("diagonal", "plain"):
        model = made(span=[{"at": "0:3", "name": "recurrent_memory", "segment": 4, "memory": 2, "order": order}])
        found.append(model(text))
        gradients.append(torch.autograd.grad(found[-1].square().sum(), list(model.parameters())))
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*gradients)
    span: Any = model.spans[0]
    memory, rows = [span.start.expand(2, 2, 16)] * 3, []
    tables = model.rotary(0, 40)
    for first in range(0, length, 4):
        x, written = model.embedding(text[:, first : first + 4]), span.write.expand(2, 2, 16)
        last = first + x.shape[1] - 1
        places = [first] * 2 + list(range(first, last + 1)) + [last] * 2
        for layer, block in enumerate(model.blocks):
            given = torch.cat((memory[layer], x, written), 1)
            made_here = block(given, *(table[places] for table in tables))
            x, written = made_here[:, 2:-2], made_here[:, -2:]
            memory[layer] = written
        rows.append(model.norm(x))
    torch.testing.assert_close(model.read(Inputs(text)).hidden, torch.cat(rows, 1))


def test_layers_that_cannot_go_together_are_refused_with_what_to_do() -> None:
    span = {"at": "0:3", "name": "recurrent_memory", "segment": 4}
    text = torch.zeros(1, 9, dtype=torch.int64)
    unlike = [{"at": "1", "hidden": 32}]
    with pytest.raises(UsageError, match="set order = 'plain'"):
        made(span=[span], pattern=unlike)(text)
    made(span=[{**span, "order": "plain"}], pattern=unlike)(text)
    with pytest.raises(UsageError, match="must be attention or the like"):
        made(span=[span], token_mixer="lightning")(text)


def test_what_is_kept_of_a_long_text_does_not_grow_where_it_need_not() -> None:
    memory = made(span=[{"at": "0:3", "name": "recurrent_memory", "segment": 4, "memory": 2}])
    assert memory.new_cache(1, 16).nbytes == memory.new_cache(1, 40).nbytes
    plain = made().new_cache(1, 40).nbytes
    sharded = made(token_mixer={"name": "s2_attention", "block": 2, "window_blocks": 1, "stride": 4})
    assert sharded.new_cache(1, 40).nbytes == plain // 4 + plain * 2 // 40
    sparse = made(token_mixer={"name": "mosa", "sparse_heads": 3})
    cache = sparse.new_cache(1, 40)
    with torch.no_grad():
        sparse.read(Inputs(torch.randint(30, (1, 12))), cache)
    state = cache.layers[0].each[1].tensors
    assert state["keys"].shape[2] == state["counts"].max() < 12


def test_sparse_attention_that_sees_all_is_attention() -> None:
    x, tables = torch.randn(2, 11, 16, dtype=torch.float64), Rotary(8, 11, 10000.0).double()(0, 11)
    dense = mixer("attention")
    for name, options in (
        ("infllm_v2", {"block": 2, "top_blocks": 9, "dense_length": 3}),
        ("s2_attention", {"block": 2, "window_blocks": 6}),
        ("s2_attention", {"block": 2, "window_blocks": 1, "stride": 1}),
    ):
        other = mixer(name, **options)
        other.load_state_dict(dense.state_dict())
        torch.testing.assert_close(other(x, *tables), dense(x, *tables))


def test_a_model_gets_sparse_mixers_and_keeps_its_weights() -> None:
    text = torch.randint(30, (2, 13))
    attention = {"name": "attention", "qk_norm": False, "rope_theta": 500.0}
    wanted = made(token_mixer=attention, key_value_heads=1)(text)
    for name, options in (
        ("infllm_v2", {"block": 4, "top_blocks": 9, "dense_length": 0}),
        ("mosa", {"sparse_heads": 2}),
    ):
        model = made(token_mixer=attention, key_value_heads=1)
        model.anatomy().convert_token_mixers("1:", name, **options)
        torch.testing.assert_close(model(text), wanted)
        again = Transformer(model.config).double().eval()
        again.load_state_dict(model.state_dict())
        torch.testing.assert_close(again(text), wanted)
    biased = {"name": "attention", "bias": "qkv"}
    model = made(token_mixer=biased)
    wanted = model(text)
    model.anatomy().convert_token_mixers("0", "infllm_v2", block=4, top_blocks=9, dense_length=0)
    torch.testing.assert_close(model(text), wanted)
    with pytest.raises(UsageError, match="no option bias"):
        made(token_mixer=biased).anatomy().convert_token_mixers("0", "mosa", sparse_heads=2)
    with pytest.raises(UsageError, match=r"no place for attention's query_norm\.weight"):
        made().anatomy().convert_token_mixers("0", "lavo")


def test_answers_that_stay_cost_fewer_iterations() -> None:
    x, tables = torch.randn(1, 9, 16, dtype=torch.float64), Rotary(8, 9, 10000.0).double()(0, 9)

    def iterations(tolerance: float, scale: float) -> Tensor:
        own = mixer("fixed_point", tolerance=tolerance, most=8)
        own.output.weight.data *= scale
        notes: Tensor = own(x, *tables)[1]["iterations"]
        return notes

    assert float(iterations(0.0, 1.0)) == pytest.approx((2 + 8 * 8) / 9)  # the first token sees itself alone
    assert iterations(0.01, 0.0) == 2  # nothing moves: the second answer is the first
    assert 2 < iterations(0.02, 1.0) < 8
