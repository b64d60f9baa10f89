"""`shoestring tune`: chats in, an adapter out, gain and forgetting told; wrong requests in one line."""

import json
from pathlib import Path

import pytest
import torch

from shoestring.base import open_model
from shoestring.contract.batch import Inputs
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PLAIN = (
    "--execution.compile=none",
    "--execution.attention=flash",
    "--execution.loss=plain",
    "--execution.precision=float32",
)


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tokenizer has a chat template."""
    run = tmp_path_factory.mktemp("base") / "run"
    words = ("--budget=40ktok", f"--data.corpus={corpus}", *TINY, "--model.context=96", "--optim.lr=0.02")
    status, _, errors = shoestring("train", *words, "--out", run)
    assert status == 0, errors
    (run / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    return run


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [[("user", f"What is {n}?"), ("assistant", f"It is zz{n % 7}zz.")] for n in range(60)]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in row]}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def tune(base: Path, chats: Path, corpus: Path, out: Path, *words: str) -> dict[str, object]:
    on = ("tune", base, f"--data.corpus={chats}", "--old", corpus, "--json", *PLAIN, "--out", out)
    status, shown, errors = shoestring(*on, *words)
    assert status == 0, errors
    found: dict[str, object] = json.loads(shown)
    return found


def logits(place: Path) -> torch.Tensor:
    with torch.no_grad():
        return open_model(str(place)).model.read(Inputs(torch.arange(40).view(1, 40) + 60)).logits()


@pytest.mark.usefixtures("pages")
def test_chats_are_learnt_and_gain_and_forgetting_are_told(
    base: Path, chats: Path, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    found = tune(base, chats, corpus, run, "--budget=3ktok")
    new, old = found["new"], found["old"]
    assert isinstance(new, dict)
    assert isinstance(old, dict)
    assert new["gain"] == pytest.approx(new["before"] - new["after"])
    assert new["gain"] > 0.1
    assert old["forgotten"] == pytest.approx(old["after"] - old["before"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if row["kind"] == "heldout"]
    assert judged[0]["step"] == 0
    assert len({(row["targets"], row["old_targets"]) for row in judged}) == 1  # the same text each time
    accounts = json.loads((run / "summary.json").read_text())["accounts"]
    assert accounts["evaluation"]["flops"] > 0
    assert "Gain and forgetting" in (run / "report.html").read_text()
    decided = {row["key"]: row["value"] for row in json.loads((run / "decisions.json").read_text())}
    assert {"train.batch", "edits.lora.rank", "optim.lr", "model.context"} <= decided.keys()
    # the adapter's folder is the model of the run; the run answers by its base's template
    torch.testing.assert_close(logits(run / "adapter"), logits(run), atol=1e-5, rtol=1e-5)
    assert open_model(str(run)).about.chat_template == TEMPLATE
    status, shown, errors = shoestring("generate", run / "adapter", "What is 3?", "--chat", "--tokens", "4")
    assert status == 0, errors
    assert shown
    # the same by name, on the base; without it the base answers
    words = ("What is 3?", "--chat", "--tokens", "4", "--temperature", "0", "--json")
    texts = {}
    for name, place in (
        ("opened", (run / "adapter",)),
        ("named", (base, "--adapter", run / "adapter")),
        ("of the run", (base, "--adapter", run)),
        ("base", (base,)),
    ):
        status, shown, errors = shoestring("generate", place[0], *words, *place[1:])
        assert status == 0, errors
        texts[name] = json.loads(shown)
    assert texts["of the run"]["text"] == texts["named"]["text"] == texts["opened"]["text"]
    # what is opened alone is merged; what is named stays beside the base
    assert texts["named"]["spent"]["flops"] > texts["opened"]["spent"]["flops"] == texts["base"]["spent"]["flops"]
    status, _, errors = shoestring("generate", base, "Once", "--adapter", base)
    assert status == 2
    assert "this run trained no adapters" in errors


def test_a_tuning_run_goes_on_bit_for_bit(base: Path, chats: Path, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tune(base, chats, corpus, run, "--budget=1500tok", "--train.checkpoint_every=1e-3", "--train.keep=99")
    steps = sorted((run / "checkpoints").iterdir())
    whole = (steps[-1] / "model.safetensors").read_bytes()
    judged = (run / "metrics.jsonl").read_text().count('"old_loss"')
    middle = int(steps[len(steps) // 2].name.removeprefix("step-"))
    status, _, errors = shoestring("train", "--resume", run, "--from-step", str(middle))
    assert status == 0, errors
    assert (sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes() == whole
    assert (run / "metrics.jsonl").read_text().count('"old_loss"') == judged


def test_text_is_tuned_on_in_full(base: Path, corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"number {number} is qq{number % 5}qq\n" * 12)
    found = tune(base, text, corpus, tmp_path / "run", "--budget=2ktok", "--method=full", "--data.heldout=0.2")
    assert found["adapter"] is None
    assert isinstance(found["new"], dict)
    assert found["new"]["gain"] > 0


def test_old_text_is_read_again_and_the_new_judged_alone(base: Path, corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"number {number} is qq{number % 5}qq\n" * 12)
    found = tune(
        base,
        text,
        corpus,
        tmp_path / "run",
        "--budget=2ktok",
        "--data.heldout=0.2",
        "--replay=0.4",
        "--model.context=32",
        "--train.heldout_tokens=256",
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if row["kind"] == "heldout"]
    new = found["new"]
    assert isinstance(new, dict)
    assert new["before"] == judged[0]["domains"]["new"] != judged[0]["loss"]
    assert new["after"] == judged[-1]["domains"]["new"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("BASE",), "give --data.corpus PATH"),
        (("BASE", "--data.corpus=CHATS", "--method=lore"), "did you mean 'lora'"),
        (("--data.corpus=CHATS",), "name what is to be tuned, PLACE"),
        (("nowhere", "--data.corpus=CHATS"), "no model that can be opened"),
        (("BASE", "--data.corpus=WRONG"), "line 3 is no chat"),
        (("BASE", "--data.corpus=CHATS", "--old=nowhere"), "no corpus 'nowhere'"),
        (("BASE", "--data.corpus=CHATS", "--edits.lora.rank=0"), "lora.rank = 0"),
        (("BASE", "--data.corpus=CHATS", "--replay=0.2"), "the new text is chats, and python-stdlib is not"),
        (("BASE", "--data.corpus=CHATS", "--replay=1.2"), "above 0 and below 1"),
    ],
)
def test_wrong_requests_are_one_line(
    base: Path, chats: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("\n".join([*chats.read_text().splitlines()[:2], '{"text": "Once"}']) + "\n")
    names = {"BASE": str(base), "CHATS": str(chats), "WRONG": str(wrong)}
    given = list(words)
    for name, value in names.items():
        given = [word.replace(name, value) for word in given]
    status, _, errors = shoestring("tune", *given, "--budget=1ktok", *PLAIN, "--out", tmp_path / "run")
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
