"""AutoRound as a peer of quantise.py: in a process of its own, of a Python that has the package `auto-round`.

    python bench/quantise_autoround.py IN OUT --bits 4 --group 64 --iters 200 --calibration tokens.json

IN is a transformers folder. OUT becomes one, with matrices that are plain numbers of what AutoRound rounded them to. tokens.json
holds lists of tokens of one length. Prints the seconds of quantising.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from auto_round import AutoRound  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out")
    for name, default in (("bits", 4), ("group", 64), ("iters", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--calibration", type=Path, required=True)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.source)
    rows = [torch.tensor([row]) for row in json.loads(options.calibration.read_text())]
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    began = time.perf_counter()
    made = AutoRound(
        model,
        tokenizer,
        bits=options.bits,
        group_size=options.group,
        sym=False,
        iters=options.iters,
        nsamples=len(data),
        seqlen=len(rows[0][0]),
        batch_size=min(8, len(data)),
        dataset=data,
        device_map="cpu",
        amp=False,
    )
    made.quantize()
    print(f"seconds {time.perf_counter() - began:.3f}")
    made.save_quantized(options.out, format="fake")
    return 0


if __name__ == "__main__":
    sys.exit(main())
