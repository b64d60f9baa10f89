"""Masked diffusion from command to command: it trains, says that its figure is a bound, and fills in answers."""

import json
import re
from pathlib import Path

import pytest

from shoestring.cli.main import main
from tests.train.command import TINY


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("denoised") / "run"
    words = ["train", "--budget=1ktok", f"--data.corpus={corpus}", *TINY, "--objective=masked_diffusion"]
    assert main([*words, "--model.causal=false", "--model.hides=true", "--out", str(folder)]) == 0
    return folder


def test_a_run_says_what_its_figure_is_and_fills_in_answers(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert "upper bound" in summary["heldout_figure"]
    assert summary["heldout_loss"] > 0
    capsys.readouterr()
    flags = ["--denoise.steps=3", "--denoise.cache=dkv_decode", "--denoise.cache.refresh=2"]
    assert main(["generate", str(trained), "Once", "--tokens", "6", "--samples", "2", "--json", *flags]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["sample"], each["prompt_tokens"]) for each in found] == [(1, 4), (2, 4)]
    assert all(each["spent"]["calls"] == 3 and each["tokens"] <= 6 for each in found)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["generate", "--drafter", "ngram", "x"], "--drafter is for decoding from left to right"),
        (["generate", "--cache.budget", "25%", "x"], r"--cache\.\* is for decoding from left to right"),
        (["evaluate"], "this model sees both ways"),
    ],
)
def test_what_asks_for_the_next_token_is_refused_with_what_works(
    trained: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], str(trained), *words[1:]]) != 0
    assert re.search(why, capsys.readouterr().err)
