"""Ways of choosing what is pruned, each against its formula."""

import pytest
import torch
from torch import Tensor

from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Evidence
from shoestring.errors import UsageError
from shoestring.method import find
from shoestring.model import ModelConfig, Transformer
from shoestring.surgery.edits.minitron import Minitron, activity
from shoestring.surgery.edits.slimgpt import SlimGPT
from shoestring.surgery.observe import Walk, observe, watching

CONFIG = ModelConfig(layers=3, width=16, heads=4, key_value_heads=2, vocabulary=30, context=12, hidden=24)


def made() -> Transformer:
    torch.manual_seed(4)
    model = Transformer(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.requires_grad_(False).eval()


def text(batches: int = 2) -> tuple[Batch, ...]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(batches):
        ids = torch.randint(30, (3, 12), generator=generator)
        made.append(Batch(Inputs(ids), ids))
    return tuple(made)


def read_by(model: Transformer, name: str, batches: tuple[Batch, ...]) -> Tensor:
    """[B, T, n]: what a module reads of a text."""
    found = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: found.append(given[0]))
    for batch in batches:
        model.read(batch.inputs)
    handle.remove()
    return torch.cat(found)


def test_minitron_is_its_formula() -> None:
    model, batches = made(), text()
    scores, spent = activity(model, Evidence(text=batches), ["hidden", "key_value_head", "width"])
    for layer in range(3):
        x = read_by(model, f"blocks.{layer}.channel_mixer.output", batches)
        torch.testing.assert_close(scores["hidden", layer], x.abs().mean(1).norm(dim=0))
        x = read_by(model, f"blocks.{layer}.token_mixer.output", batches).unflatten(-1, (2, -1))
        torch.testing.assert_close(scores["key_value_head", layer], x.norm(dim=-1).mean(1).norm(dim=0))
    norms = [
        read_by(model, f"blocks.{n}.{part}", batches)
        for n in range(3)
        for part in ("token_mixer.qkv", "channel_mixer.gate_up")
    ]
    expected = torch.stack([x.abs().mean(1).square().sum(0) for x in norms]).sum(0).sqrt()
    torch.testing.assert_close(scores["width", None], expected)
    assert spent.read == 72
    decision = Minitron(hidden=0.5, multiple=4).decide(model, Evidence(text=batches))
    for one in decision.values["keep"]:
        best = scores["hidden", one["layer"]].argsort(descending=True)[:12]
        assert one["indices"] == sorted(best.tolist())


def test_slimgpt_leaves_the_least_squares_weights() -> None:
    """Whatever goes, the columns that stay are those that reproduce the old output best."""
    model, batches = made(), text(6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decision = SlimGPT(hidden=0.5, heads=0.5, damping=1e-9, step=3).decide(model, Evidence(text=batches))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    first = next(one for one in decision.values["keep"] if (one["kind"], one["layer"]) == ("key_value_head", 0))
    stay = [8 * group + each for group in first["indices"] for each in range(8)]
    name = "blocks.0.token_mixer.output"
    x = read_by(model, name, batches).flatten(0, 1).double()
    weight = model.get_parameter(f"{name}.weight").double()
    solved = torch.linalg.lstsq(x[:, stay], x @ weight.T).solution.T
    torch.testing.assert_close(decision.tensors[f"{name}.weight"].double(), solved, atol=1e-4, rtol=1e-3)


def test_slimgpt_takes_what_costs_least() -> None:
    """Two groups of columns, of which one can be made of the other: that one goes, and nothing is lost."""
    torch.manual_seed(0)
    x = torch.randn(200, 2, dtype=torch.float64)
    x = torch.cat([x, x @ torch.randn(2, 2, dtype=torch.float64), torch.randn(200, 2, dtype=torch.float64)], 1)
    weight = torch.randn(5, 6, dtype=torch.float64)
    hessian = x.T @ x / 200 + 1e-9 * torch.eye(6, dtype=torch.float64)
    changed, stay = SlimGPT(hidden=0.5)._pruned(weight, hessian, 3, 2)
    assert 2 in stay
    torch.testing.assert_close(x @ changed.T, x @ weight.T, atol=1e-5, rtol=1e-5)


def test_slimgpt_prunes_better_than_chance() -> None:
    model, batches = made(), text(6)
    wanted = torch.cat([model.read(batch.inputs).logits() for batch in batches])

    def off(name: str) -> float:
        edit = find("surgery", name, "edit").target(hidden=0.6, heads=0.5)
        small = made()
        small = edit.apply(small, edit.decide(small, Evidence(seed=1, text=batches)))
        return float((torch.cat([small.read(batch.inputs).logits() for batch in batches]) - wanted).norm())

    assert off("slimgpt") < 0.8 * off("random_pruning")


def test_more_goes_of_deeper_layers_and_the_mean_is_kept() -> None:
    gone = [SlimGPT(hidden=0.5, first=0.4)._gone(layer, 12) for layer in range(12)]
    assert gone[0] == pytest.approx(0.4)
    assert gone == sorted(gone)
    assert sum(gone) / 12 == pytest.approx(1.0)


def test_a_walk_reads_what_changed_layers_make() -> None:
    """A layer that is changed on the way is what the later ones read; the states are those of a plain pass."""
    model, batches = made(), text()
    seen: dict[str, list[Tensor]] = {}
    walk = Walk(model, batches)
    for layer, name in enumerate(walk):
        reads = f"{name}.token_mixer.qkv"
        with watching(model, [reads], lambda which, x: seen.setdefault(which, []).append(x)):
            walk.run()
        if layer == 0:
            model.get_parameter("blocks.0.channel_mixer.output.weight").mul_(2)
    model.get_parameter("blocks.0.channel_mixer.output.weight").mul_(0.5)
    torch.testing.assert_close(
        torch.cat(seen["blocks.0.token_mixer.qkv"]), read_by(model, "blocks.0.token_mixer.qkv", batches)
    )
    model.get_parameter("blocks.0.channel_mixer.output.weight").mul_(2)
    torch.testing.assert_close(
        torch.cat(seen["blocks.2.token_mixer.qkv"]), read_by(model, "blocks.2.token_mixer.qkv", batches)
    )
    assert walk.spent.flops > 0


def test_a_wrapped_model_can_be_walked_and_not_cut() -> None:
    import transformers

    from shoestring.model.wrapped import Wrapped

    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 12}
    wrapped = Wrapped(transformers.AutoModelForCausalLM.from_config(transformers.GemmaConfig(**sizes, **heads)))
    seen: list[Tensor] = []
    name = f"{wrapped.anatomy().layers[1]}.mlp.down_proj"
    observe(wrapped, text(), [name], lambda _, x: seen.append(x))
    walked: list[Tensor] = []
    walk = Walk(wrapped, text())
    for _ in walk:
        with watching(wrapped, [name], lambda _, x: walked.append(x)):
            walk.run()
    torch.testing.assert_close(torch.cat(walked), torch.cat(seen))
    with pytest.raises(UsageError, match="has no axis 'hidden' that can be cut"):
        Minitron(hidden=0.5).decide(wrapped, Evidence(text=text()))


def test_text_is_needed_where_the_method_looks_at_some() -> None:
    for edit in (Minitron(hidden=0.5), SlimGPT(hidden=0.5)):
        with pytest.raises(UsageError, match="looks at text"):
            edit.decide(made(), Evidence())
    with pytest.raises(ValueError, match="nothing is to be pruned"):
        Minitron()
