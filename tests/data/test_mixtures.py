"""Mixtures: shares as asked, each domain in its own order, the same after a restart wherever it falls; each by its own formula."""

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.config import Choice, build, to_toml
from shoestring.contract.batch import Batch
from shoestring.data import DataConfig, TokenStore, Windows, prepare
from shoestring.data.config import SourceConfig
from shoestring.data.mixed import InTurn, Mixed
from shoestring.data.mixture import Domain, Mixture
from shoestring.data.stream import Stream, stream_of
from shoestring.errors import ShoestringError, UsageError
from shoestring.log_lines import held_back

CONTEXT = 4
NAMES = ("code", "prose", "talk")
SIZES = (400, 100, 52)
DOMAINS = [Domain(name, size) for name, size in zip(NAMES, SIZES, strict=True)]

Hearing = Callable[[int], dict[str, float]]

TABLE: dict[str, dict[str, Any]] = {
    "fixed": {"weights": {"code": 1, "talk": 3}},
    "dynamic_loading": {"reference": {"code": 2.0, "prose": 2.5, "talk": 1.0}},
    "ramp": {"end": {"talk": 1}, "begin": 0.2, "finish": 0.8},
    "phases": {"until": (0.5, 0.9), "weights": ({"code": 1, "prose": 1}, {"code": 1, "talk": 1}, {"talk": 1})},
    "online_schedule": {"file": "WEIGHTS"},
    "replay": {"old": ("code",), "recover": 0.1},
}


@pytest.fixture(autouse=True)
def _weights_in_a_file(tmp_path: Path) -> None:
    TABLE["online_schedule"]["file"] = str(tmp_path / "weights.json")
    (tmp_path / "weights.json").write_text(json.dumps({"prose": 1, "talk": 2}))


def made(name: str, **options: Any) -> Mixture:
    found: Mixture = Choice.of("data", name, kind="mixture", **(options or TABLE[name])).build(DOMAINS)
    return found


def windows(seed: int = 3) -> list[Windows]:
    """Every token tells its domain and place: domain * 1000 + place."""
    stores = [
        TokenStore([np.arange(size, dtype=np.uint32) + 1000 * place], np.array([0]), 0)
        for place, size in enumerate(SIZES)
    ]
    return [Windows(store, CONTEXT, seed) for store in stores]


def mixed(mixture: Mixture, **more: int) -> Mixed:
    return Mixed(NAMES, windows(), mixture, 3, **more)


def losses(step: int) -> dict[str, float]:
    return {"code": 3 + step / 20, "prose": 2.4, "talk": 2 + math.sin(step)}


def read(stream: Stream, first: int, last: int, rows: int = 8, steps: int = 20) -> list[Batch]:
    """Steps first .. last-1 of a run of `steps`, which hears every third."""
    batches = []
    for step in range(first, last):
        batches.append(stream.take(step * rows, rows, step / steps))
        if step % 3 == 2:
            stream.hear(step / steps, losses(step))
    return batches


@pytest.mark.parametrize("name", TABLE)
def test_a_restart_anywhere_goes_on_with_the_same_rows(name: str) -> None:
    whole = read(mixed(made(name)), 0, 20)
    for cut in (1, 7, 12, 19):
        before = mixed(made(name))
        first = read(before, 0, cut)
        after = mixed(made(name))
        after.restore(json.loads(json.dumps(before.state())))  # as a checkpoint keeps it
        both = first + read(after, cut, 20)
        for one, other in zip(whole, both, strict=True):
            assert torch.equal(one.inputs.values, other.inputs.values)
            assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("name", TABLE)
def test_each_domain_is_read_in_its_own_order(name: str) -> None:
    batches = read(mixed(made(name)), 0, 20)
    rows = torch.cat([batch.inputs.values for batch in batches])
    domains = torch.cat([batch.extra["domain"] for batch in batches])
    assert torch.equal(rows[:, 0] // 1000, domains)
    for place, source in enumerate(windows()):
        own = rows[domains == place]
        if len(own):
            assert torch.equal(own, source.batch(0, len(own)).inputs.values)


@pytest.mark.parametrize("name", TABLE)
def test_weights_are_shares(name: str) -> None:
    mixture = made(name)
    for step in range(20):
        weights = mixture.weights(step / 20)
        assert weights.shape == (3,)
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1)
        mixture.hear(step / 20, losses(step))


@pytest.mark.parametrize("name", [name for name in TABLE if name != "fixed"])
def test_weights_change_on_the_way_and_are_not_called_constant(name: str) -> None:
    mixture = made(name)
    first = mixture.weights(0.0).tolist()
    for step in range(10):
        mixture.hear(step / 20, losses(step))
    assert mixture.weights(0.95).tolist() != pytest.approx(first)
    assert not type(mixture).constant


@given(
    parts=st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda parts: sum(parts) > 0.1),
    start=st.integers(0, 10**9),
)
def test_any_stretch_has_each_domain_to_within_a_few(parts: list[float], start: int) -> None:
    weights = np.array(parts) / sum(parts)
    found = np.bincount(mixed(made("fixed")).picks(start, 500, weights), minlength=3)
    assert np.abs(found - 500 * weights).max() < 5
    assert (found[weights == 0] == 0).all()


@pytest.mark.parametrize("name", TABLE)
def test_workers_together_read_what_one_would(name: str) -> None:
    whole = read(mixed(made(name)), 0, 6)
    parts = [read(mixed(made(name), worker=worker, workers=4), 0, 6) for worker in range(4)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].inputs.values for part in parts]), batch.inputs.values)


def test_a_look_consumes_nothing() -> None:
    stream = mixed(made("fixed"))
    looked = stream.batch(0, 16)
    assert torch.equal(stream.batch(4, 12).inputs.values, looked.inputs.values[4:])
    assert torch.equal(stream.take(0, 16, 0.0).inputs.values, looked.inputs.values)


def test_a_plain_source_is_a_stream_without_state() -> None:
    source = windows()[0]
    stream = stream_of(source)
    assert stream.state() is None
    assert torch.equal(stream.take(5, 3, 0.5).targets, source.batch(5, 3).targets)
    assert stream_of(stream) is stream


def test_held_out_windows_come_in_turn() -> None:
    whole = InTurn(windows(0))
    found = whole.batch(0, len(whole)).extra["domain"].tolist()
    counts = [len(each) for each in windows()]
    assert [found.count(place) for place in range(3)] == counts
    assert found[:6] == [0, 1, 2, 0, 1, 2]
    assert found[-10:] == [0] * 10
    assert whole.batch(7, 2).inputs.values.tolist() == whole.batch(0, 9).inputs.values[7:].tolist()


def test_isolated_windows_are_joined_with_their_documents() -> None:
    stores = [TokenStore.of([[domain + 1] * 5] * 20, 0) for domain in range(3)]
    stream = Mixed(NAMES, [Windows(store, 8, packing="isolated") for store in stores], made("fixed"))
    batch = stream.take(0, 12, 0.0)
    assert batch.inputs.documents is not None
    assert batch.inputs.documents.shape == batch.inputs.values.shape == (12, 8)


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_with_it_is_read_as_it_was_written(name: str) -> None:
    sources = tuple(SourceConfig(domain, domain) for domain in NAMES)
    config = DataConfig(source=sources, mixture=Choice.of("data", name, kind="mixture", **TABLE[name]))
    assert build(DataConfig, tomllib.loads(to_toml(config))) == config


# ---- formulas


def test_dynamic_loading_multiplies_by_the_exponential_of_the_excess() -> None:
    reference = {"code": 2.0, "prose": 2.5, "talk": 1.0}
    mixture = made("dynamic_loading", reference=reference, weights={"code": 1, "prose": 1, "talk": 2})
    weights = {"code": 0.25, "prose": 0.25, "talk": 0.5}
    for heard in ({"code": 3.0, "prose": 2.0, "talk": 1.5}, {"code": 2.5, "prose": 2.9, "talk": 0.9}):
        mixture.hear(0.5, heard)
        alpha = {name: weights[name] * math.exp(max(heard[name] - reference[name], 0)) for name in NAMES}
        weights = {name: alpha[name] / sum(alpha.values()) for name in NAMES}
        assert mixture.weights(0.5).tolist() == pytest.approx(list(weights.values()))
    mixture.hear(0.5, {})  # nothing was read of any
    assert mixture.weights(0.5).tolist() == pytest.approx(list(weights.values()))


def test_a_ramp_is_a_straight_line() -> None:
    mixture = made("ramp", start={"code": 1}, end={"talk": 3, "prose": 1}, begin=0.2, finish=0.6)
    for progress, along in ((0.0, 0.0), (0.2, 0.0), (0.3, 0.25), (0.6, 1.0), (0.9, 1.0)):
        assert mixture.weights(progress).tolist() == pytest.approx([1 - along, 0.25 * along, 0.75 * along])


def test_phases_end_where_they_are_said_to() -> None:
    mixture = made("phases", **TABLE["phases"])
    for progress, expected in (
        (0, [0.5, 0.5, 0]),
        (0.499, [0.5, 0.5, 0]),
        (0.5, [0.5, 0, 0.5]),
        (0.9, [0, 0, 1]),
        (1, [0, 0, 1]),
    ):
        assert mixture.weights(progress).tolist() == expected


def test_a_file_changes_the_weights_at_an_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    mixture: Any = made("online_schedule", file=str(file), weights={"code": 1})
    mixture.hear(0.1, {})  # there is none yet
    assert mixture.weights(0.1).tolist() == [1, 0, 0]
    file.write_text('{"prose": 3, "talk": 1}')
    assert mixture.weights(0.2).tolist() == [1, 0, 0]
    mixture.hear(0.3, {})
    mixture.hear(0.4, {})
    assert mixture.weights(0.4).tolist() == [0, 0.75, 0.25]
    assert mixture.changes == [[0.3, [0, 0.75, 0.25]]]
    for wrong, said in (
        ('{"prose": "x"}', "weights are numbers"),
        ('{"pros": 1}', "did you mean 'prose'"),
        ("[1", "damaged"),
    ):
        file.write_text(wrong)
        with pytest.raises(ShoestringError, match=said):
            mixture.hear(0.5, {})


def test_replay_shares_between_old_and_new_and_answers_a_drop() -> None:
    options = {"old": ("code", "talk"), "share": 0.2, "weights": {"code": 1, "talk": 3, "prose": 5}, "recover": 0.5}
    mixture = made("replay", **options)
    assert mixture.weights(0).tolist() == pytest.approx([0.05, 0.8, 0.15])
    heard = ({"code": 2.0, "talk": 4.0}, {"code": 3.0, "talk": 4.2}, {"code": 2.5, "talk": 4.4, "prose": 9.0})
    behind = (False, True, False)  # means of 3.0, 3.6 and 3.45
    for losses, drop in zip(heard, behind, strict=True):
        mixture.hear(0.5, losses)
        share = 0.4 if drop else 0.2
        assert mixture.weights(0.5).tolist() == pytest.approx([share / 4, 1 - share, 3 * share / 4])


def test_natural_shares_are_those_of_tokens() -> None:
    fixed: Any = Choice.of("data", "fixed", kind="mixture").build(DOMAINS)
    assert fixed.weights(0).tolist() == pytest.approx([size / sum(SIZES) for size in SIZES])
    assert type(fixed).constant


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fixed", {"weights": {"cod": 1}}, "did you mean 'code'"),
        ("fixed", {"weights": {"code": 0}}, "above 0 for one source"),
        ("ramp", {"end": {"code": 1}, "begin": 0.5, "finish": 0.5}, "must be below finish"),
        ("phases", {"until": (0.5,), "weights": ({"code": 1},)}, "1 ends are of 2 phases"),
        ("phases", {"until": (0.5, 0.4), "weights": ({"code": 1},) * 3}, "must ascend"),
        (
            "phases",
            {"until": (0.5,), "weights": ({"code": 1}, {"talk": 1}), "limit": 0.1},
            "more than limit = 0.1 after phase 1",
        ),
        ("replay", {"old": ("songs",)}, "old of 'songs', which is no source"),
        ("replay", {"old": NAMES}, "one at least is new"),
        ("replay", {"old": ("code",), "weights": {"talk": 1}}, "need a weight above 0 each"),
        ("dynamic_loading", {"reference": {"code": 1}}, "needs a loss for 'prose'"),
        (
            "dynamic_loading",
            {"reference": {"code": 1, "prose": 1, "talk": 1, "songs": 1}},
            "of 'songs', which is no source",
        ),
    ],
)
def test_what_does_not_fit_the_sources_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(name, **options)


# ---- several corpora prepared


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[SourceConfig, ...]:
    found = []
    for name, word in (("code", "def"), ("prose", "tale")):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number}.txt").write_text(f"{word} {name} {number} " * (5 + number % 3))
        found.append(SourceConfig(name, str(tmp_path / name)))
    return tuple(found)


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes"])
def test_sources_share_a_tokenizer_and_are_kept_apart(
    corpora: tuple[SourceConfig, ...], tmp_path: Path, tokenizer: str
) -> None:
    config = DataConfig(source=corpora, tokenizer=tokenizer, vocabulary=300, heldout=0.2)
    whole = prepare(config, tmp_path / "cache")
    assert [part.name for part in whole.domains] == ["code", "prose"]
    assert len(whole.train) == sum(len(part.train) for part in whole.domains)
    start = len(whole.domains[0].train)
    assert whole.train.rows(np.array([start]), 9).tolist() == whole.domains[1].train.rows(np.array([0]), 9).tolist()
    assert whole.tokenizer.decode(whole.domains[1].train.tokens[:30].tolist()).startswith("tale prose")
    assert whole.train.document_starts[len(whole.domains[0].train.document_starts)] == start
    with held_back("shoestring") as said:
        again = prepare(config, tmp_path / "cache")
    assert not said
    assert again.fingerprint == whole.fingerprint
    other = prepare(DataConfig(**{**vars(config), "source": corpora[::-1]}), tmp_path / "cache")
    assert other.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixture": Choice.of("data", "fixed", kind="mixture")}, "give data.source too"),
        ({"source": (SourceConfig("a", "x"), SourceConfig("a", "y"))}, "two are named 'a'"),
        ({"source": (SourceConfig("a", "x"),), "corpus": "y"}, "make it one of the sources"),
        ({"source": (SourceConfig("a", "x"),), "documents": "y"}, "an index of one corpus"),
        ({"source": (SourceConfig("a", "x", encoding="hex"),)}, "is no text encoding"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DataConfig(**options)


def test_arms_of_a_comparison_may_differ_in_what_is_read_of_each_source_and_not_in_the_text() -> None:
    sources = (SourceConfig("code", "x"), SourceConfig("prose", "y"))
    base = DataConfig(source=sources, packing="isolated")
    others = {
        "mixture": Choice.of("data", "ramp", kind="mixture", end={"code": 1}),
        "rows": Choice.of("data", "histogram", kind="packing"),
        "length": Choice.of("data", "length_cycle", kind="length", shapes=(8,)),
        "selection": Choice.of("data", "bmdal", kind="selection"),
        "interventions": (Choice.of("data", "planted_texts", kind="intervention", file="texts.jsonl"),),
    }
    for key, value in others.items():
        other = replace(base, **{key: value})  # type: ignore[arg-type]
        assert other != base
        assert other.text_alone == base.text_alone
    assert replace(base, heldout=0.1).text_alone != base.text_alone
    assert replace(base, source=sources[::-1]).text_alone != base.text_alone
