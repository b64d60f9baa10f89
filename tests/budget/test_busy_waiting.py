"""Threads spin on a quiet machine and sleep beside other processes; how they wait changes nothing else."""

import os
import sys
from pathlib import Path

import pytest
import torch

from shoestring.budget import busy_waiting
from shoestring.budget.busy_waiting import LoadReading, SpareTeams, Watch, others
from shoestring.cli.main import main


class Recorded(SpareTeams):
    """Teams that are only counted."""

    def _add(self, size: int) -> None:
        self._owners.append(size)  # type: ignore[arg-type]

    def let_go(self) -> None:
        self._owners.clear()


def watch(loads: list[float], *, size: int, cores: int) -> list[bool]:
    """Whether threads sleep after each look, where other processes do `loads` cores' worth of work between two looks."""
    readings = [LoadReading(0.0, 0.0, 0.0)]
    for load in loads:
        last = readings[-1]
        readings.append(LoadReading(last.at + 0.5, last.busy + 0.5 * (load + size), last.own + 0.5 * size))
    given = iter(readings)
    made = Watch(load=lambda: next(given), size=lambda: size, cores=lambda: range(cores), teams=Recorded())
    found = []
    for _ in loads:
        made.look()
        found.append(made.crowded)
    return found


@pytest.mark.parametrize(
    ("loads", "size", "cores", "asleep"),
    [
        ([0.0, 0.05, 0.0], 2, 2, [False, False, False]),
        ([0.0, 0.9, 0.9], 2, 2, [False, True, True]),
        ([0.9, 0.0, 0.0, 0.0, 0.0], 2, 2, [True, True, True, False, False]),  # free for three looks, then they spin
        ([0.9, 0.0, 0.0, 0.9, 0.0], 2, 2, [True, True, True, True, True]),
        ([0.9, 0.9], 1, 2, [False, False]),  # one thread waits for nobody
        ([5.0, 5.0], 8, 16, [False, False]),  # there is room beside them
        ([9.0, 9.0], 8, 16, [True, True]),
    ],
)
def test_threads_sleep_while_others_need_the_cores(
    loads: list[float], size: int, cores: int, asleep: list[bool]
) -> None:
    assert watch(loads, size=size, cores=cores) == asleep


@pytest.mark.parametrize(("size", "cores", "teams"), [(2, 2, 1), (16, 16, 1), (8, 16, 2), (4, 16, 5), (12, 16, 1)])
def test_as_many_spare_teams_as_outnumber_the_cores(size: int, cores: int, teams: int) -> None:
    made = Recorded()
    made.hold(size, cores)
    assert len(made._owners) == teams
    assert 1 + (teams + 1) * (size - 1) > cores >= 1 + teams * (size - 1)


def test_the_load_of_others_is_what_is_not_our_own() -> None:
    assert others(LoadReading(0, 100, 10), LoadReading(2, 104, 12)) == 1.0
    assert others(LoadReading(0, 100, 10), LoadReading(2, 101, 12)) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of /proc")
def test_a_spare_team_is_real_and_leaves_every_bit() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/task"))

    def gradients() -> torch.Tensor:
        torch.manual_seed(1)
        layer, x = torch.nn.Linear(128, 128), torch.randn(512, 128)
        layer(x).square().sum().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = gradients()
        started, teams = count(), SpareTeams()
        teams.hold(2, 2)
        assert count() == started + 2  # its owner and another, both asleep
        assert torch.equal(gradients(), alone)
        assert torch.get_num_threads() == 2
        teams.let_go()
        assert not teams.held
        assert torch.equal(gradients(), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", busy_waiting.VARIABLES)
def test_what_the_user_chose_stands(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for each in busy_waiting.VARIABLES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "7")
    busy_waiting.begin()
    assert busy_waiting.policy() == {"policy": "as the user set it", "set": f"{name}=7"}
    assert not busy_waiting.crowded()
    assert f"{name}=7" in "\n".join(busy_waiting.describe(0.01))


@pytest.mark.skipif(sys.platform != "linux", reason="only libgomp can be told while it runs")
def test_a_command_watches_and_the_library_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in busy_waiting.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    seen = []

    def run(words: object) -> int:
        seen.append(busy_waiting.policy())
        return 0

    monkeypatch.setattr("shoestring.cli.methods.run", run)
    before = dict(os.environ)
    assert busy_waiting.policy() == {"policy": "the OpenMP library's own"}
    assert main(["methods"]) == 0
    assert seen[0]["policy"].startswith("spin, and sleep")
    assert seen[0]["now"] == "spin"
    assert busy_waiting.policy() == {"policy": "the OpenMP library's own"}
    assert dict(os.environ) == before
