"""A trained run made small: the model rounded and written, measured on the run's held-out text before and after."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoestring import atomic
from shoestring.budget.ledger import Ledger
from shoestring.errors import UsageError
from shoestring.model.transformer import Transformer
from shoestring.shrink.folder import MODEL, load_packed, save_packed
from shoestring.shrink.gguf_file import Kind, WrittenFile, as_stored, require_ternary, write_gguf
from shoestring.shrink.heldout import HeldoutText
from shoestring.shrink.rounding import Ternaries, pack, ternaries
from shoestring.shrink.sizes import FilePart, parts
from shoestring.train.evaluate import Heldout
from shoestring.train.trained import Trained

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Shrunk:
    """What was made. before, after: held-out loss of the run's model, and of the small one as the kernels here compute it, or,
    where it is GGUF, of its numbers in float32 arithmetic; None where they were not measured. bytes: of the file. parts: of it,
    where it is a packed model. written: where it is GGUF."""

    chosen: Ternaries
    before: Heldout | None
    after: Heldout | None
    bytes: int
    parts: tuple[FilePart, ...] = ()
    written: WrittenFile | None = None


def shrink_to_packed(
    trained: Trained, layout: str, embedding: int, out: Path, text: HeldoutText | None, ledger: Ledger
) -> Shrunk:
    """Write the packed model's folder, whole or not at all, with what making it cost as its ledger.jsonl.

    The loss after is that of the model as it is read back from the folder. text: None measures nothing.
    Raises: UsageError where `out` holds something.
    """
    _refuse_taken(out)
    before = text(trained.native, ledger, "before") if text else None
    with atomic.directory(out) as half:
        with ledger.clock("compute"):
            chosen = ternaries(trained.native, trained.quantised)
            save_packed(half, pack(trained.native, chosen, layout, embedding), trained.tokenizer)
            model = load_packed(half).model
        ledger.write("pack", layout=layout, embedding=embedding)
        after = text(model, ledger, "after") if text else None
        lines: list[dict[str, Any]] = ledger.entries
        (half / LEDGER).write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = out / MODEL
    return Shrunk(chosen, before, after, file.stat().st_size, tuple(parts(file)))


def shrink_to_gguf(
    trained: Trained,
    kind: Kind,
    embedding: int,
    out: Path,
    text: HeldoutText | None,
    ledger: Ledger,
) -> Shrunk:
    """Write a GGUF file.

    The loss after is that of the file's numbers in float32 arithmetic here; llama.cpp's, which rounds activations, is its own.

    Raises: UsageError where `out` exists, or no matrix would be ternary in the file.
    """
    _refuse_taken(out)
    with ledger.clock("compute"):
        chosen = ternaries(trained.native, trained.quantised)
        plain = dense(trained.native, chosen)
        require_ternary(plain, kind)
    before = text(trained.native, ledger, "before") if text else None
    with ledger.clock("compute"):
        written = write_gguf(out, plain, trained.tokenizer, kind, embedding=embedding)
    ledger.write("write", kind=kind, embedding=embedding)
    after = text(as_stored(plain, embedding), ledger, "after") if text else None
    return Shrunk(chosen, before, after, written.bytes, written=written)


@torch.no_grad()
def dense(model: Transformer, chosen: Ternaries) -> Transformer:
    """A copy of `model` with plain matrices, the chosen ones as the numbers they are rounded to."""
    with torch.random.fork_rng(devices=[]):
        plain = Transformer(model.config)
    plain.load_state_dict(model.state_dict())
    for name, quantised in chosen.items().items():
        plain.get_submodule(name).weight.copy_(quantised.dequantise())  # type: ignore[operator]
    return plain.eval()


def _refuse_taken(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists: name another with --out")
