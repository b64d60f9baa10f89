"""The model that lm_eval asks: sums of log-probabilities, windows, answers; and lm_eval's own loop over it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'shoestring[lm-eval]'")

from lm_eval.api.instance import Instance  # noqa: E402

from shoestring.base import lm_eval_model  # noqa: E402
from shoestring.base.lm_eval_model import ShoestringLM  # noqa: E402
from shoestring.errors import UsageError  # noqa: E402
from tests.serve.serving import CONTEXT, END, writer  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Iterator[ShoestringLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_model, "open_model", lambda place, dtype: writer().opened)
        yield ShoestringLM(place="here")


def asked(kind: Any, *pairs: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, pair, place) for place, pair in enumerate(pairs)]


def log_probabilities(ids: list[int]) -> torch.Tensor:
    """[T - 1, V], of what comes after each token but the last."""
    found: torch.Tensor = writer().opened.model(torch.tensor([ids[:-1]]))[0].double().log_softmax(1)  # type: ignore[operator]
    return found


def test_a_continuation_counts_with_the_space_before_it(model: ShoestringLM) -> None:
    pairs = [
        ("The sky is ", "blue"),
        ("The sky is", " blue"),
        ("", "blue"),
        ("A longer text than those before it", " ends"),
    ]
    found = model.loglikelihood(asked("loglikelihood", *pairs))
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        ids = list((context + continuation).encode())
        ids = ids if context else [END, *ids]
        last = len(continuation) + len(context) - len(context.rstrip())
        rows = log_probabilities(ids)[-last:]
        assert value == pytest.approx(
            sum(float(row[token]) for row, token in zip(rows, ids[-last:], strict=True)), abs=1e-3
        )
        assert greedy == all(int(row.argmax()) == token for row, token in zip(rows, ids[-last:], strict=True))
    assert found[0] == pytest.approx(found[1])


def test_what_greedy_decoding_writes_is_told_so(model: ShoestringLM) -> None:
    (text,) = model.generate_until(asked("generate_until", ("Hello", {"until": [], "max_gen_toks": 4})))
    ids = list(b"Hello")
    for _ in range(4):
        ids.append(int(log_probabilities([*ids, 0])[-1].argmax()))
    assert text == writer().tokenizer.decode(ids[5:])


def test_long_texts_are_read_in_windows_and_every_token_once(model: ShoestringLM) -> None:
    text = "abc " * 150
    ids = [END, *text.encode()]
    (found,) = model.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    total = 0.0
    for start in range(0, len(ids) - 1, CONTEXT):
        window = ids[start : start + CONTEXT + 1]
        if len(window) <= CONTEXT:  # the last is read with all that fits before it
            own, window = len(window) - 1, ids[-(CONTEXT + 1) :]
        else:
            own = CONTEXT
        rows = log_probabilities(window)[-own:]
        total += sum(float(row[token]) for row, token in zip(rows, window[-own:], strict=True))
    assert found == pytest.approx(total, rel=1e-4)
    assert math.isfinite(found)


def test_answers_end_at_stop_strings(model: ShoestringLM) -> None:
    (whole,) = model.generate_until(asked("generate_until", ("Hello", {"until": ["\ufffe"], "max_gen_toks": 20})))
    stop = whole[3:5]
    cut, same = model.generate_until(
        asked("generate_until", ("Hello", {"until": [stop], "max_gen_toks": 20}), ("Hello", {"max_gen_toks": 20}))
    )
    assert cut == whole[: whole.index(stop)]
    assert same == whole
    one, two = (
        model.generate_until(asked("generate_until", ("Hello", {"do_sample": True, "temperature": 1.5, "seed": seed})))
        for seed in (1, 2)
    )
    assert one != two
    assert model.spent.written > 0
    assert model.spent.flops > 0


def test_a_chat_is_read_with_its_special_tokens() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_model, "open_model", lambda place, dtype: writer().opened)
        own = ShoestringLM(place="here")
    text = own.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert own._encode(text) == writer().chat_ids([{"role": "user", "content": "Hi"}])
    assert own.chat_template(True) != ""
    assert own.tokenizer_name


def test_wrong_arguments_are_said() -> None:
    with pytest.raises(UsageError, match="dtype = 'int8'"):
        ShoestringLM(place="here", dtype="int8")


def test_lm_eval_runs_a_task_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "one two", "a": " three"}\n{"q": "a b", "a": " c"}\n')
    (tmp_path / "toy.yaml").write_text(
        f"task: toy\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "output_type: loglikelihood\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list:\n  - metric: perplexity\n    aggregation: perplexity\n    higher_is_better: false\n"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lm_eval_model, "open_model", lambda place, dtype: writer().opened)
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="shoestring", model_args="place=here", tasks=["toy"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )  # fmt: skip
    values = [value for name, value in found["results"]["toy"].items() if name.startswith("perplexity,")]
    assert len(values) == 1
    assert values[0] > 1
