"""A request names an adapter of a served model; answers, lists and limits know of it."""

import pytest
import torch

from shoestring.base.adapters import named_folders
from shoestring.cli.serve import _by_model
from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.serve.app import Service
from shoestring.serve.metrics import Metrics
from shoestring.serve.served_model import ServedModel
from shoestring.serve.settings import Settings
from shoestring.tune.several import Several
from tests.serve.serving import client, writer
from tests.tune.making import evidence

ASKED = {"prompt": "Once", "max_tokens": 5, "temperature": 0, "ignore_eos": True}


def service() -> Service:
    settings, metrics, models = Settings(rows=4, tokens=64), Metrics(), []
    for name, adapters in (("tiny", ("poet", "clerk")), ("other", ("poet",))):
        made = writer()
        model = made.opened.model
        several = Several(model)  # type: ignore[arg-type]
        for place, adapter in enumerate(adapters):
            edit = Choice.of("tune", "lora", kind="edit", rank=2).build()
            decision = edit.decide(model, evidence(model))  # type: ignore[arg-type]
            torch.manual_seed(place)
            ups = {key.replace("down", "up"): torch.randn(*shape_of(model, key), 2) for key in decision.tensors}
            decision.tensors.update(ups)
            several.add(adapter, edit, decision)
        models.append(ServedModel(name, made, settings, metrics, several))
    return Service(models, settings, metrics)


def shape_of(model: object, key: str) -> tuple[int]:
    return (model.get_submodule(key.rpartition(".")[0]).out_features,)  # type: ignore[attr-defined]


def test_a_request_names_an_adapter() -> None:
    with client(service()) as ask:
        listed = {each["id"]: each for each in ask.get("/v1/models").json()["data"]}
        assert set(listed) == {"tiny", "other", "tiny:poet", "tiny:clerk", "other:poet"}
        assert listed["tiny:clerk"]["parent"] == "tiny"
        assert ask.get("/v1/models/tiny:clerk").json()["id"] == "tiny:clerk"
        texts, flops = {}, {}
        for name in ("tiny", "tiny:poet", "tiny:clerk", "clerk"):
            found = ask.post("/v1/completions", json={**ASKED, "model": name})
            assert found.status_code == 200, found.text
            body = found.json()
            texts[name], flops[name] = body["choices"][0]["text"], body["usage"]["cost"]["flops"]
            assert body["model"] == ("tiny:clerk" if name == "clerk" else name)
        assert texts["clerk"] == texts["tiny:clerk"]
        assert len({texts["tiny"], texts["tiny:poet"], texts["tiny:clerk"]}) == 3
        assert flops["tiny:poet"] > flops["tiny"]
        # a budget that is enough without an adapter, and too small with one
        allowed = {**ASKED, "budget": {"flops": flops["tiny"], "least_tokens": 5}}
        assert ask.post("/v1/completions", json={**allowed, "model": "tiny"}).status_code == 200
        refused = ask.post("/v1/completions", json={**allowed, "model": "tiny:poet"})
        assert refused.json()["error"]["code"] == "budget_too_small"
        for wrong in ("poet", "tiny:bard", "clerk:tiny"):  # two models have a poet
            assert ask.post("/v1/completions", json={**ASKED, "model": wrong}).status_code == 404


def test_flags_name_adapters() -> None:
    assert _by_model(["poet=a/b"], ["tiny"]) == {"tiny": ["poet=a/b"]}
    assert _by_model(["other:poet=a=b"], ["tiny", "other"]) == {"tiny": [], "other": ["poet=a=b"]}
    assert {name: str(path) for name, path in named_folders(["poet=a/b", "c/clerk"]).items()} == {
        "poet": "a/b",
        "clerk": "c/clerk",
    }
    with pytest.raises(UsageError, match="say which: tiny:NAME=FOLDER"):
        _by_model(["poet=a"], ["tiny", "other"])
    with pytest.raises(UsageError, match="there is no model 'tine': did you mean 'tiny'"):
        _by_model(["tine:poet=a"], ["tiny"])
    with pytest.raises(UsageError, match="two adapters would be called 'poet'"):
        named_folders(["poet=a", "b/poet"])
