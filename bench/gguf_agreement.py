"""Greedy continuations of ternary runs by llama.cpp, from their exported GGUF, against ours: do the tokens agree?

    shoestring train --edits ternary --model.width 256 --model.hidden 256 --budget 10m --out RUN
    shoestring train --edits ternary --model.width 256 --model.hidden 768 --budget 10m --out WIDER
    python bench/gguf_agreement.py RUN WIDER

needs `pip install gguf llama-cpp-python` (the latter is compiled on installation). Prompts are cut from the run's held-out text
and given as ids. 'free': each side continues its own text. 'led': both are asked for the token after each prefix of our
continuation, so that one difference does not count for all that follow it.

The two sides round activations differently where a matrix has more than 256 columns: here to int8 with one scale a token, in
llama.cpp with one for every 256 columns.
For every token at which they differ, led, a line says how near the two candidates were, in our logits and in llama.cpp's. To see
how much of it is this rounding, llama.cpp is also compared with a model of ours in float32 arithmetic that has the file's
numbers and whose activations are rounded as there ('rounded alike'): what then remains is of another origin.
"""

import argparse
import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shoestring.budget.machine import cache_folder
from shoestring.data.prepare import prepare
from shoestring.data.windows import Windows
from shoestring.decode import Sampling, generate
from shoestring.model import Transformer
from shoestring.shrink.conduct import dense
from shoestring.shrink.gguf_file import KINDS, as_stored, write_gguf
from shoestring.shrink.rounding import pack, ternaries
from shoestring.train.evaluate import HELDOUT_ORDER
from shoestring.train.trained import load_trained


@dataclass
class Difference:
    """A token on which the two differ. margins: the logit of our choice minus that of llama.cpp's, on each side. spread: the
    largest difference between any of our logits and llama.cpp's, there. alike: which side our model takes whose activations are
    rounded as there."""

    prompt: int
    place: int
    ours: int
    theirs: int
    margin_ours: float
    margin_theirs: float
    spread: float
    alike: str


def prompts(run: Path, count: int, length: int) -> list[list[int]]:
    trained = load_trained(run)
    dataset = prepare(trained.config.data, cache_folder())
    batch = Windows(dataset.heldout, length, HELDOUT_ORDER, "stream").batch(0, count)
    return [row.tolist() for row in batch.inputs.values]


def round_as_there(layer: nn.Linear, given: tuple[torch.Tensor]) -> torch.Tensor:
    """The input of a layer as llama.cpp rounds it (Q8_K): of every 256 columns, the one of the largest absolute value becomes
    -127, or 127 where it is negative."""
    cut = given[0].unflatten(-1, (-1, 256))
    largest = cut.gather(-1, cut.abs().argmax(-1, keepdim=True))
    scale = largest / -127
    return ((cut / torch.where(scale == 0, 1, scale)).round().clamp(max=127) * scale).flatten(-2)


@torch.inference_mode()
def logits(model: Transformer, ids: list[int], first: int) -> np.ndarray:
    """[places, vocabulary]: after ids[: first], and after every later one."""
    return model(torch.tensor([ids]))[0, first - 1 :].numpy()


def continued(llama: Any, prompt: list[int], count: int) -> list[int]:
    """The greedy continuation by llama.cpp."""
    llama.reset()
    new, found = prompt, []
    for _ in range(count):
        llama.eval(new)
        new = [int(llama.scores[llama.n_tokens - 1].argmax())]
        found += new
    return found


def compare(run: Path, kind: str, options: argparse.Namespace, texts: list[list[int]]) -> dict[str, Any]:
    import llama_cpp

    trained = load_trained(run)
    chosen = ternaries(trained.native, trained.quantised)
    ours, plain = pack(trained.native, chosen, "ternary2", 16), as_stored(dense(trained.native, chosen), 16)
    settings = Sampling(temperature=0)
    for layer in plain.blocks.modules():
        if isinstance(layer, nn.Linear) and layer.in_features % 256 == 0:
            layer.register_forward_pre_hook(round_as_there)
    free = led = total = alike = 0
    differences: list[Difference] = []
    spreads: list[float] = []
    alike_spreads: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, plain, trained.tokenizer, kind)  # type: ignore[arg-type]
        context = trained.config.model.context
        llama = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            logits_all=True,
            n_threads=options.threads,
            n_threads_batch=options.threads,
            type_k=llama_cpp.GGML_TYPE_F32,  # as here; its default, float16, is one more rounding
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
        for number, prompt in enumerate(texts):
            mine = list(generate(ours, prompt, settings, max_new_tokens=options.tokens))
            theirs = continued(llama, prompt, len(mine))
            free += sum(a == b for a, b in zip(mine, theirs, strict=True))
            total += len(mine)
            llama.reset()
            llama.eval(prompt + mine[:-1])
            asked = np.array(llama.scores[len(prompt) - 1 : llama.n_tokens])
            own, same = (logits(model, prompt + mine[:-1], len(prompt)) for model in (ours, plain))
            alike += int((same.argmax(-1) == asked.argmax(-1)).sum())
            alike_spreads.append(float(np.abs(same - asked).max()))
            spreads.append(float(np.abs(own - asked).max()))
            for place, token in enumerate(mine):
                other = int(asked[place].argmax())
                led += other == token
                if other != token:
                    third = int(same[place].argmax())
                    differences.append(
                        Difference(
                            number,
                            place,
                            token,
                            other,
                            float(own[place, token] - own[place, other]),
                            float(asked[place, token] - asked[place, other]),
                            float(np.abs(own[place] - asked[place]).max()),
                            {token: "ours", other: "theirs"}.get(third, "neither"),
                        )
                    )
    shape = trained.config.model
    return {
        "model": {"layers": shape.layers, "width": shape.width, "hidden": shape.hidden, "step": trained.step},
        "kind": kind,
        "tokens": total,
        "free": free / total,
        "led": led / total,
        "led, rounded alike": alike / total,
        "largest difference of logits": max(spreads),
        "largest difference of logits, rounded alike": max(alike_spreads),
        "differences": [asdict(difference) for difference in differences],
    }


def show(found: dict[str, Any]) -> None:
    shape = "width {width}, hidden {hidden}".format(**found["model"])
    print(
        f"{shape}, {found['kind']}: {found['tokens']} tokens; equal {found['free']:.1%} free, {found['led']:.1%} led, logits up to "
        f"{found['largest difference of logits']:.3f} apart; rounded alike {found['led, rounded alike']:.1%} led, logits up to "
        f"{found['largest difference of logits, rounded alike']:.3f} apart"
    )
    for one in found["differences"]:
        print(
            f"  prompt {one['prompt']:2}, token {one['place']:3}: {one['ours']} here, {one['theirs']} there; margin "
            f"{one['margin_ours']:.3f} here, {-one['margin_theirs']:.3f} there, logits up to {one['spread']:.3f} apart; "
            f"rounded alike: {one['alike']}"
        )


def main() -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    found = []
    for run in options.runs:
        texts = prompts(run, options.prompts, options.prompt_tokens)
        found += [compare(run, kind, options, texts) for kind in options.kinds]
    for one in found:
        show(one)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
