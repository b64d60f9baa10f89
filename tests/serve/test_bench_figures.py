"""What the bench of the server makes of what its clients saw."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    for name in ("serve", "serve_clients", "serve_peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_queueing_models_are_given_the_line_that_clients_saw() -> None:
    import serve

    # a pass takes 10 ms and 1 ms a row; a prompt takes 40 ms
    rows = [{"clients": clients, "between": 0.010 + 0.001 * clients, "first": 0.040 + 0.011} for clients in (1, 8, 32)]
    made = serve.service_of(rows, 20)
    assert made.step == pytest.approx(0.010)
    assert made.beside == pytest.approx(0.001)
    assert made.each == pytest.approx(0.040)
    alone = 0.040 + 20 * 0.011
    said = serve.predicted(0.5, 0.5 / alone, made, 32, 20)
    # Pollaczek and Khinchine, of a constant service at half load: half a service of waiting
    assert said["one by one"] == pytest.approx(1.5 * alone, rel=1e-3)
    assert said["one by one"] is not None
    assert said["batches"] is not None
    assert said["one by one"] is not None
    assert alone < said["batches"] < said["one by one"] * 1.05
    above = serve.predicted(2.0, 2 / alone, made, 32, 20)
    assert above["one by one"] is None  # it would grow for ever
    assert above["batches"] is not None


def test_figures_of_answers() -> None:
    from serve_clients import Answer, percentile, summed

    answers = [Answer(0.0, [1.0, 1.5, 2.5], 3, 2.5), Answer(0.5, [1.0, 1.2], 2, 1.2), Answer(1.0)]
    found = summed(answers, 2.5)
    assert found["rate"] == 2.0
    assert found["first"] == 0.75
    assert found["first_p99"] == 1.0
    assert found["between"] == 0.5
    assert found["between_p99"] == 1.0
    assert percentile([], 0.5) != percentile([], 0.5)  # no number
    with pytest.raises(SystemExit):
        import serve

        serve.read(["--parts", "poisson"])
