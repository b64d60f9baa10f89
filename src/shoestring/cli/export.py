"""`shoestring export`: a model written for transformers, or as GGUF."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from shoestring.base import open_model
from shoestring.budget.units import show
from shoestring.cli.arguments import DTYPES, Arguments
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.errors import UsageError, did_you_mean
from shoestring.shrink.export import GGUF_TYPES, OWN_TYPES, export_gguf, export_transformers, refuse_taken
from shoestring.train.adapter_folder import export_adapter
from shoestring.train.stored_run import stored_run
from shoestring.train.trained import load_trained

log = logging.getLogger(__name__)

TARGETS = ("transformers", "gguf", "peft")

PURPOSES = """\
  transformers  a folder that AutoModelForCausalLM.from_pretrained loads, the tokenizer beside; --dtype float32, bfloat16, float16
  gguf          a file for llama.cpp; --dtype F32, F16, BF16, Q8_0, and TQ2_0 or TQ1_0 for a model with ternary weights
                (needs the package 'gguf'; models of the families llama, mistral, qwen2 and qwen3)
  peft          the folder of a run's adapters, for PeftModel.from_pretrained and for commands here

Edits are folded: adapters are added to the matrices that they stand beside, and weights trained for few bits become the numbers
that they stand for. `shoestring quantise` rounds weights; this command does not, but for the type that is asked for.
"""


def run(words: Sequence[str]) -> int:
    parser = Arguments(
        "export",
        "Write a model for other programs: as a folder for transformers, as a GGUF file, or its adapters for peft.",
        PURPOSES,
    )
    parser.add_argument(
        "place", metavar="PLACE", help="a folder of a run or of transformers, a GGUF file, hf:NAME@REVISION, or smollm2"
    )
    parser.add_argument("--to", required=True, metavar="TARGET", help="transformers, gguf, or peft")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="the folder or file to write; nothing may be there"
    )
    parser.add_argument("--dtype", metavar="TYPE", help="of weights (default: as they are)")
    add_json_flag(parser, "what was written, and what was folded or left out")
    found = parser.read(words)
    if found.to not in TARGETS:
        raise UsageError(f"--to {found.to}: {did_you_mean(found.to, TARGETS)}")
    if found.to == "peft":
        return _adapters(found.place, found.out, found.dtype, Screen(soft_wrap=True, stderr=found.json), found.json)
    screen = Screen(soft_wrap=True, stderr=found.json)
    to_gguf = found.to == "gguf"
    kind, dtype = (_gguf_type(found.dtype), None) if to_gguf else (None, _dtype(found.dtype))
    refuse_taken(found.out)
    with shown_on(screen, before="note: ") as notes:
        stored = None if to_gguf else stored_run(found.place)
        opened, weights = stored or (open_model(found.place), None)
        for note in opened.about.notes:
            log.info(note)
        made = (
            export_gguf(opened, found.out, kind) if to_gguf else export_transformers(opened, found.out, dtype, weights)
        )
    template = opened.about.chat_template is not None
    if made.folded:
        screen.print(f"folded      {', '.join(made.folded)}")
    if template:
        screen.print("beside it   its chat template")
    screen.print(f"written to  {made.place} ({made.dtype}, {show('bytes', made.bytes)})")
    if found.json:
        about = {"path": made.place, "to": found.to, "dtype": made.dtype, "bytes": made.bytes}
        print_json({**about, "folded": made.folded, "chat_template": template, "notes": notes})
    return 0


def _adapters(place: str, out: Path, dtype: str | None, screen: Screen, as_json: bool) -> int:
    """Write the adapters of a run."""
    if dtype is not None:
        raise UsageError("--dtype: adapters are written in float32, in which they were trained: leave it out")
    refuse_taken(out)
    size = export_adapter(load_trained(Path(place)), out)
    screen.print(f"written to  {out} (float32, {show('bytes', size)})")
    if as_json:
        print_json({"path": out, "to": "peft", "dtype": "float32", "bytes": size, "folded": [], "notes": []})
    return 0


def _dtype(given: str | None) -> torch.dtype | None:
    """The type of a folder's weights."""
    if given is None:
        return None
    if given not in DTYPES:
        raise UsageError(f"--dtype {given}: {did_you_mean(given, DTYPES)}")
    found: torch.dtype = getattr(torch, given)
    return found


def _gguf_type(given: str | None) -> str | None:
    """The type of a file's matrices, in GGUF's words or in torch's."""
    if given is None:
        return None
    known = {name.lower(): name for name in GGUF_TYPES}
    known |= {str(dtype).removeprefix("torch."): name for dtype, name in OWN_TYPES.items()}
    if given.lower() not in known:
        raise UsageError(f"--dtype {given}: {did_you_mean(given, GGUF_TYPES)}")
    return known[given.lower()]
