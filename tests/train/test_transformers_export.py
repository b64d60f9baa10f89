from pathlib import Path

import torch

from shoestring.cli.main import main
from shoestring.train.trained import load_trained
from tests.train.command import TINY


def test_a_trained_run_loads_in_transformers_with_the_same_logits(corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tmp_path / "run"
    assert main(["train", "--budget=20ktok", f"--data.corpus={corpus}", "--out", str(run), *TINY]) == 0
    ours = load_trained(run)
    theirs = AutoModelForCausalLM.from_pretrained(run / "transformers")
    tokenizer = AutoTokenizer.from_pretrained(run / "transformers")
    text = "line 3 of text 4: abcabc\n"
    ids = tokenizer(text)["input_ids"]
    assert ids == ours.tokenizer.encode(text)
    with torch.no_grad():
        inputs = torch.tensor([ids])
        torch.testing.assert_close(theirs(inputs).logits, ours.model(inputs), atol=1e-4, rtol=0)
    batch = tokenizer([text, text * 20], padding=True, truncation=True, return_tensors="pt")
    assert tokenizer.model_max_length == ours.config.model.context == 32
    assert batch["input_ids"].shape == (2, 32)
    assert tokenizer.pad_token_id == theirs.generation_config.pad_token_id == ours.tokenizer.end
    assert theirs.get_input_embeddings().padding_idx is None
    assert batch["input_ids"][0].tolist() == [*ids, *[ours.tokenizer.end] * (32 - len(ids))]
