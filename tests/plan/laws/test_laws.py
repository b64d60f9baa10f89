"""Every law that is fitted to runs as they are: its formula against a slow reference, its derivatives, and a planted law back."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from shoestring.errors import UsageError
from shoestring.method import find, methods
from shoestring.plan.fit import gradient_error
from shoestring.plan.law import Law
from shoestring.plan.runs_table import RunsTable
from shoestring.plan.scaled import Scaled

Row = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """law: its card. planted: constants. columns: of a full grid of runs. reference: (constants, row) -> target, from the paper.
    beyond: a run outside of the grid. ours: constants that the fit gives in place of planted ones that are alike to it."""

    law: str
    planted: Row
    columns: Mapping[str, Sequence[float]]
    reference: Callable[[Row, Row], float]
    beyond: Row
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Law:
        made: Law = find("plan", self.law, "law").target(**self.options)
        return made

    def rows(self) -> list[dict[str, float]]:
        return [dict(zip(self.columns, values, strict=True)) for values in itertools.product(*self.columns.values())]

    def table(self, noise: float = 0.0, seed: int = 0) -> RunsTable:
        law, drawn = self.build(), np.random.default_rng(seed)
        rows = [
            {**row, law.target: self.reference(self.planted, row) * math.exp(noise * drawn.standard_normal())}
            for row in self.rows()
        ]
        return RunsTable.of(rows)


SIZES = (1e6, 4e6, 16e6, 64e6)
TOKENS = (2e7, 8e7, 32e7, 128e7)
CHINCHILLA = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.31}


def chinchilla(c: Row, r: Row) -> float:
    return c["E"] + c["A"] / r["parameters"] ** c["alpha"] + c["B"] / r["tokens"] ** c["beta"]


def data_constrained(c: Row, r: Row) -> float:
    def worth(first: float, times: float, star: float) -> float:
        return first + first * star * (1 - math.exp(-times / star))

    fits = min(r["unique"] * (c["A"] / c["B"]) ** (1 / c["alpha"]), r["parameters"])
    size = worth(fits, max(r["parameters"] / fits - 1, 0), c["R_N"])
    data = worth(r["unique"], max(r["tokens"] / r["unique"] - 1, 0), c["R_D"])
    return c["E"] + c["A"] / size ** c["alpha"] + c["B"] / data ** c["alpha"]


def joint_moe(c: Row, r: Row) -> float:
    start, most = 2.0732, 290.4521
    experts = 1 / (1 / (r["experts"] - 1 + 1 / (1 / start - 1 / most)) + 1 / most)
    log = math.log(experts)
    return (
        c["a"] * experts ** c["delta"] * r["active"] ** (-c["alpha"] + c["gamma"] * log)
        + c["b"] * experts ** c["omega"] * r["tokens"] ** (-c["beta"] + c["zeta"] * log)
        + c["c"]
    )


def leverage(c: Row, r: Row) -> float:
    grain = math.log10(r["granularity"])
    power = c["a"] + c["d"] * math.log10(r["compute"]) + c["g"] * grain**2 + c["b"] * grain
    return float((r["activation_ratio"] + c["A_start"]) ** power)


def distillation(c: Row, r: Row) -> float:
    teacher, own = r["teacher_loss"], r["supervised_loss"]
    gap = teacher ** -c["c0"] * (1 + (teacher / (own * c["d1"])) ** (1 / c["f1"])) ** (-c["c1"] * c["f1"])
    return teacher + gap * (c["A"] / r["parameters"] ** c["alpha"] + c["B"] / r["tokens"] ** c["beta"]) ** 0.764


def quantisation_aware(c: Row, r: Row) -> float:
    size, bits = r["parameters"], r["bits"]
    full, quantised = (r[name] / (size * bits / 8) for name in ("full_tokens", "quantised_tokens"))
    total = r["full_tokens"] + r["quantised_tokens"]
    shrink = 2 ** (-c["kappa"] * bits)
    few = c["phi"] / (size ** c["psi"] * quantised ** c["omega"])
    both = c["lam"] / (size ** c["psi"] * full ** c["xi"] * quantised ** c["omega"])
    return c["E"] + c["A"] / size ** c["alpha"] + c["B"] / total ** c["beta"] + shrink * (c["theta"] + few + both)


def quality(c: Row, r: Row) -> float:
    pool, seen = r["unique"], r["tokens"]
    product, before, number = min(pool, seen) ** -c["b"], min(pool, seen), 1
    while before < seen:
        number += 1
        after = min(number * pool, seen)
        product *= (after / before) ** (-c["b"] * 0.5 ** ((number - 1) / c["tau"]))
        before = after
    return c["d"] + c["a"] * product


CASES = [
    Case(
        "chinchilla",
        CHINCHILLA,
        {"parameters": SIZES, "tokens": TOKENS},
        chinchilla,
        {"parameters": 1e9, "tokens": 2e10},
    ),
    Case(
        "chinchilla",
        {**CHINCHILLA, "beta": 0.34},
        {"parameters": SIZES, "tokens": TOKENS},
        chinchilla,
        {"parameters": 1e9, "tokens": 2e10},
        {"tied": True},
    ),
    Case(
        "data_constrained",
        {"E": 1.8, "A": 500.0, "B": 1500.0, "alpha": 0.35, "R_D": 15.0, "R_N": 5.0},
        {"parameters": (2e6, 2e7, 2e8), "tokens": (1e8, 4e8, 1.6e9, 6.4e9), "unique": (2e7, 8e7)},
        data_constrained,
        {"parameters": 1e8, "tokens": 1e10, "unique": 1.6e8},
    ),
    Case(
        "softq",
        {**CHINCHILLA, "s": 3.0},
        {"parameters": SIZES, "unique": TOKENS},
        lambda c, r: (
            c["E"]
            + ((c["A"] / r["parameters"] ** c["alpha"]) ** c["s"] + (c["B"] / r["unique"] ** c["beta"]) ** c["s"])
            ** (1 / c["s"])
        ),
        {"parameters": 1e9, "unique": 2e10},
    ),
    Case(
        "kaplan",
        {"A": 12.0, "alpha": 0.08, "B": 20.0, "beta": 0.1},
        {"body": SIZES, "tokens": TOKENS},
        lambda c, r: (
            ((c["A"] / r["body"] ** c["alpha"]) ** (1 / c["beta"]) + (c["B"] / r["tokens"] ** c["beta"]) ** (1 / c["beta"]))
            ** c["beta"]
        ),
        {"body": 1e9, "tokens": 2e10},
    ),
    Case(
        "kaplan",
        {"A": 12.0, "alpha": 0.08, "B": 300.0, "beta": 0.7},
        {"body": SIZES, "steps": (1e3, 4e3, 16e3)},
        lambda c, r: c["A"] / r["body"] ** c["alpha"] + c["B"] / r["steps"] ** c["beta"],
        {"body": 1e9, "steps": 1e5},
        {"form": "size_steps"},
    ),
    *[
        Case(
            "kaplan",
            {factor: 12.0, power: 0.08},
            {column: (1e6, 1e7, 1e8, 1e9)},
            lambda c, r, factor=factor, power=power, column=column: c[factor] / r[column] ** c[power],  # type: ignore[misc]
            {column: 1e11},
            {"form": form},
        )
        for form, column, factor, power in (
            ("size", "body", "A", "alpha"),
            ("data", "tokens", "B", "beta"),
            ("compute", "compute", "A", "alpha"),
        )
    ],
    Case(
        "compute_only",
        {"a": 0.4, "b": 10.0},
        {"compute": (1e14, 1e15, 1e16, 1e17)},
        lambda c, r: c["b"] - c["a"] * math.log10(r["compute"]),
        {"compute": 1e19},
    ),
    Case(
        "one_epoch",
        {"A": 40.0, "alpha": 0.15},
        {"tokens": TOKENS},
        lambda c, r: c["A"] / r["tokens"] ** c["alpha"],
        {"tokens": 1e11},
    ),
    Case(
        "infinite_compute",
        {"E": 3.4, "A": 2e6, "alpha": 0.9},
        {"parameters": (2e6, 4e6, 8e6, 16e6, 64e6)},
        lambda c, r: c["E"] + c["A"] / r["parameters"] ** c["alpha"],
        {"parameters": 1e9},
    ),
    Case(
        "cerebras_ladder",
        {"E": 0.5, "A": 47.0, "alpha": 0.0737},
        {"compute": (1e15, 1e16, 1e17, 1e18, 1e19, 1e20), "parameters": (1.0,), "tokens": (20.0,)},
        lambda c, r: c["E"] + c["A"] / r["compute"] ** c["alpha"],
        {"compute": 1e21, "parameters": 1.0, "tokens": 20.0},
    ),
    Case(
        "autoregressive",
        {"E": 2.0, "A": 300.0, "alpha": 0.3},
        {"compute": (1e14, 1e15, 1e16, 1e17, 1e18)},
        lambda c, r: c["E"] + c["A"] / r["compute"] ** c["alpha"],
        {"compute": 1e20},
        {"along": "compute"},
    ),
    Case(
        "average_parameters",
        CHINCHILLA,
        {"average_parameters": SIZES, "tokens": TOKENS},
        lambda c, r: c["E"] + c["A"] / r["average_parameters"] ** c["alpha"] + c["B"] / r["tokens"] ** c["beta"],
        {"average_parameters": 1e9, "tokens": 2e10},
    ),
    Case(
        "diloco",
        {"A": 19.0, "alpha": 0.1, "beta": 0.012},
        {"parameters": SIZES, "workers": (1, 2, 4)},
        lambda c, r: c["A"] * r["parameters"] ** -c["alpha"] * r["workers"] ** c["beta"],
        {"parameters": 1e9, "workers": 8},
    ),
    Case(
        "joint_moe",
        {
            "a": 36.0, "alpha": 0.19, "delta": -0.23, "gamma": 0.01,
            "b": 36.0, "beta": 0.18, "omega": 0.55, "zeta": -0.026, "c": 1.36,
        },
        {"active": SIZES, "tokens": TOKENS, "experts": (1, 4, 16)},
        joint_moe,
        {"active": 1e8, "tokens": 2e9, "experts": 8},
    ),
    Case(
        "efficiency_leverage",
        {"a": 1.2, "d": -0.08, "g": 0.017, "b": -0.12, "A_start": 0.016},
        {"activation_ratio": (0.02, 0.1, 0.5), "granularity": (1, 4, 16), "compute": (1e18, 1e20, 1e22)},
        leverage,
        {"activation_ratio": 0.05, "granularity": 8, "compute": 1e23},
    ),
    Case(
        "distillation",
        {"c0": 1.5, "c1": 5.0, "f1": 0.2, "d1": 1.3, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.35},
        {"parameters": SIZES, "tokens": TOKENS[:3], "teacher_loss": (2.2, 2.8), "supervised_loss": (2.6, 3.4)},
        distillation,
        {"parameters": 1e8, "tokens": 4e8, "teacher_loss": 2.4, "supervised_loss": 2.8},
    ),
    Case(
        "quantisation_aware",
        {
            "E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.31, "kappa": 0.6, "theta": 0.3,
            "phi": 3.0, "lam": 2.0, "psi": 0.12, "omega": 0.3, "xi": 0.25,
        },
        {"parameters": SIZES[:3], "full_tokens": TOKENS[:3], "quantised_tokens": TOKENS[:3], "bits": (2, 4)},
        quantisation_aware,
        {"parameters": 2e7, "full_tokens": 4e8, "quantised_tokens": 1e8, "bits": 3},
    ),
    Case(
        "vocabulary",
        {"E": 5.5, "A1": 100.0, "A2": 300.0, "B": 900.0, "alpha2": 0.5, "beta": 0.35},
        {"body": SIZES, "vocabulary_parameters": (3e5, 3e6, 3e7), "tokens": TOKENS[:3]},
        lambda c, r: (
            -c["E"]
            + c["A1"] / r["body"] ** c["beta"]
            + c["A2"] / r["vocabulary_parameters"] ** c["alpha2"]
            + c["B"] / r["tokens"] ** c["beta"]
        ),
        {"body": 1e9, "vocabulary_parameters": 1e8, "tokens": 2e9},
    ),
    Case(
        "quality_quantity",
        {"d": 1.5, "a": 40.0, "b": 0.2, "tau": 3.0},
        {"unique": (1e6, 4e6), "tokens": (1e6, 3e6, 1e7, 3e7)},
        quality,
        {"unique": 2e6, "tokens": 5e7},
    ),
    Case(
        "steps_to_target",
        {"S_min": 400.0, "B_crit": 3e4},
        {"batch": (1e3, 4e3, 16e3, 64e3, 256e3)},
        lambda c, r: c["S_min"] * (1 + c["B_crit"] / r["batch"]),
        {"batch": 1e6},
    ),
    Case(
        "data_parallelism",
        {"S_min": 400.0, "B_c": 3e4, "p": 1.6},
        {"batch": (1e3, 4e3, 16e3, 64e3, 256e3)},
        lambda c, r: c["S_min"] * (1 + (c["B_c"] / r["batch"]) ** c["p"]) ** (1 / c["p"]),
        {"batch": 1e6},
    ),
    *[
        Case(
            "random_matrix_rate",
            {"R_max": 0.02, "B_0": 3e4},
            {"batch": (1e3, 4e3, 16e3, 64e3, 256e3)},
            lambda c, r, power=power: c["R_max"] * (r["batch"] / (r["batch"] + c["B_0"])) ** power,  # type: ignore[misc]
            {"batch": 1e6},
            {"optimiser": name},
        )
        for name, power in (("sgd", 1.0), ("adam", 0.5))
    ],
    Case(
        "trainable_parameters",
        {"E": 1.7, "A": 400.0, "alpha": 0.34, "phi": 0.05},
        {"trainable": SIZES, "frozen": (0.0, 1e6, 1e8)},
        lambda c, r: c["E"] + c["A"] / (r["trainable"] + c["phi"] * r["frozen"]) ** c["alpha"],
        {"trainable": 1e9, "frozen": 1e9},
    ),
    Case(
        "feedback_alignment",
        {"A_0": 20.0, "alpha_0": 0.05, "A_1": 22.0, "alpha_1": 0.045},
        {"compute": (1e14, 1e15, 1e16, 1e17), "other_way": (0, 1)},
        lambda c, r: (
            c["A_1"] / r["compute"] ** c["alpha_1"] if r["other_way"] else c["A_0"] / r["compute"] ** c["alpha_0"]
        ),
        {"compute": 1e19, "other_way": 1},
    ),
    Case(
        "expert_sparsity",
        {"T_best": 1.2, "k": 0.03, "a_best": 0.15},
        {"activation_ratio": (0.02, 0.05, 0.1, 0.3, 1.0)},
        lambda c, r: c["T_best"] + c["k"] * math.log(r["activation_ratio"] / c["a_best"]) ** 2,
        {"activation_ratio": 0.5},
    ),
    Case(
        "sigmoid_reward",
        {"R_0": 0.1, "A": 0.65, "C_mid": 2e3, "B": 0.9},
        {"compute": (1e2, 3e2, 1e3, 2e3, 5e3, 1e4)},
        lambda c, r: c["R_0"] + (c["A"] - c["R_0"]) / (1 + (c["C_mid"] / r["compute"]) ** c["B"]),
        {"compute": 1e5},
    ),
]  # fmt: skip

OF_MINIMA = {
    "chinchilla_isoflop",
    "chinchilla_envelope",
    "corrected_isoflop",
    "batch_size",
    "best_rate",
    "capacity_gap",
}
"""Laws that find their rows in a table themselves: tests/plan/laws/test_minima.py."""

IDS = [f"{case.law}-{'-'.join(map(str, case.options.values()))}".rstrip("-") for case in CASES]


def test_every_law_has_a_case() -> None:
    assert {card.name for card in methods("plan", "law")} == {case.law for case in CASES} | OF_MINIMA


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_formula_is_the_papers(case: Case) -> None:
    law = case.build()
    for row in (*case.rows(), case.beyond):
        constants = {name: case.planted[name] for name in law.names}
        assert law.value(constants, row) == pytest.approx(case.reference(case.planted, row), rel=1e-9)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_derivatives_are_those_of_finite_differences(case: Case) -> None:
    law = case.build()
    scaled = Scaled(law, law.prepare(case.table()))
    chosen = scaled.starts[:: max(1, len(scaled.starts) // 3)][:3] + 0.01
    assert gradient_error(scaled.expected, torch.minimum(chosen, scaled.high - 0.01), len(scaled.targets)) < 1e-4


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_without_noise_the_planted_law_comes_back(case: Case) -> None:
    found = case.build().fit(case.table(), resamples=2, rungs=0, most_steps=120)
    assert not found.stopped_early, found.describe()
    for row in (*case.rows(), case.beyond):
        assert found.predict(row).value == pytest.approx(case.reference(case.planted, row), rel=2e-3), found.describe()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_what_it_needs_and_does_not_get_is_named(case: Case) -> None:
    law = case.build()
    with pytest.raises(UsageError, match=f"law '{case.law}' needs"):
        law.fit(RunsTable.of([{"unrelated": 1.0}] * 30))
    with pytest.raises(UsageError, match=f"law '{case.law}' needs .* to predict"):
        law.value(case.planted, {})
