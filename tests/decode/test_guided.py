"""Answers that follow a schema or an expression, with drafts and samples too, and what cannot be followed."""

import json
import re
from typing import Any

import pytest
import torch

from shoestring.config import build
from shoestring.data.bpe import byte_tokenizer
from shoestring.decode import Engine, Request, Sampling, Stop
from shoestring.decode.constraints.guided import Grammars
from shoestring.decode.store import PagedStore
from shoestring.errors import UsageError
from shoestring.method import find
from shoestring.model import ModelConfig, Transformer

END, VOCABULARY = 256, 259
TOKENS = byte_tokenizer()


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENS, VOCABULARY, {END, 100})


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    sizes = {"layers": 1, "width": 32, "heads": 2, "vocabulary": VOCABULARY, "context": 256}
    made = Transformer(build(ModelConfig, sizes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.requires_grad_(False).eval()


def allowed(constraint: Any) -> set[int]:
    return set(constraint.mask().nonzero()[:, 0].tolist())


def test_an_expression_allows_what_it_matches_and_then_an_end(grammars: Grammars) -> None:
    constraint = grammars.regex(r"a[bc]+")
    mask = constraint.mask()
    assert mask is not None
    assert mask.shape == (VOCABULARY,)
    assert allowed(constraint) == {ord("a")}
    constraint.take(ord("a"))
    assert allowed(constraint) == {ord("b"), ord("c")}
    other = constraint.copy()
    constraint.take(ord("c"))
    assert allowed(constraint) == {ord("b"), ord("c"), END, 100}
    assert allowed(other) == {ord("b"), ord("c")}


def test_what_the_grammar_does_not_know_ends_the_answer(grammars: Grammars) -> None:
    constraint = grammars.regex("ab")
    copied = constraint.copy()
    constraint.take(ord("x"))
    assert allowed(constraint) == {END, 100}
    assert constraint.failures == copied.failures != []
    assert allowed(copied) == {ord("a")}


def test_json_has_a_space_where_python_writes_one(grammars: Grammars) -> None:
    constraint = grammars.schema({"const": {"a": [1, 2], "b": None}})
    for byte in json.dumps({"a": [1, 2], "b": None}).encode():
        assert byte in allowed(constraint)
        constraint.take(byte)
    assert allowed(constraint) == {END, 100}


@pytest.mark.parametrize("drafter", [None, "ngram"])
def test_answers_follow_a_schema(grammars: Grammars, model: Transformer, drafter: str | None) -> None:
    schema = {
        "type": "object",
        "properties": {"items": {"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 2, "maxItems": 4}},
        "required": ["items"],
        "additionalProperties": False,
    }
    made = find("decode", drafter, "drafter").target() if drafter else None
    engine = Engine(model, store=PagedStore(model, 80, 16), rows=4, drafter=made)
    prompt = tuple(TOKENS.encode('{"items": ["left", "left"]}'))
    request = Request(prompt, Sampling(seed=3), 100, frozenset({END, 100}), 6, constraint=grammars.schema(schema))
    answers = list(engine.run([request]))
    assert len(answers) == 6
    for answer in answers:
        assert answer.stop is Stop.END
        items = json.loads(TOKENS.decode(answer.tokens))["items"]
        assert 2 <= len(items) <= 4
        assert set(items) <= {"left", "right"}
    assert len({answer.tokens for answer in answers}) > 1
    if drafter:
        assert sum(answer.spent.charge.wasted for answer in answers) < sum(len(answer.tokens) for answer in answers) * 8


def test_the_best_allowed_token_is_taken_when_greedy(grammars: Grammars, model: Transformer) -> None:
    prompt: tuple[int, ...] = (5, 6)
    (answer,) = Engine(model, rows=1).run(
        [Request(prompt, Sampling(temperature=0), 9, frozenset({END}), constraint=grammars.regex("[x-z]{3}"))]
    )
    text, expected = prompt, ""
    for _ in range(3):
        logits = model(torch.tensor([text]))[0, -1]
        token = max(map(ord, "xyz"), key=lambda one: float(logits[one]))
        text, expected = (*text, token), expected + chr(token)
    assert TOKENS.decode(answer.tokens) == expected
    assert re.fullmatch("[x-z]{3}", expected)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "nothing"}, "the schema cannot be used: Invalid type: nothing"),
        ({"type": "string", "pattern": "((("}, "unclosed group"),
        ({"anyOf": []}, "Unsatisfiable schema"),
        ({"not": {}}, "not"),
        ({"$ref": "#"}, "the schema cannot be used"),
        ({"$ref": "http://a.b/c"}, "does not fetch resources"),
        ({"enum": ["a" * 70_000]}, "letters, and 65,536 are the most"),
        ({"const": "\ud800"}, "not JSON serializable"),
    ],
)
def test_schemas_that_cannot_be_followed(grammars: Grammars, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as found:
        grammars.schema(schema)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("expression", ["(((", "(?=x)y", "[", r"\p{Nothing}", "a" * 70_000])
def test_expressions_that_cannot_be_followed(grammars: Grammars, expression: str) -> None:
    with pytest.raises(UsageError, match="the regular expression"):
        grammars.regex(expression)


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"need llguidance: pip install 'shoestring\[serve\]'"):
        Grammars(TOKENS, VOCABULARY, {END})
