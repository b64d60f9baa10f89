"""The folder of experts that are used together."""

import hashlib
from pathlib import Path

import torch

from shoestring.base.opened import Opened, Provenance
from shoestring.config import tree
from shoestring.experts.folder import EXPERTS, ExpertsFolder
from shoestring.experts.judgement import load_experts
from shoestring.method import method


@method(
    "experts.openers",
    kind="opener",
    name="experts",
    claim="the experts' next-token probabilities, mixed as the folder's configuration says",
    cost="reads the checkpoint of each expert once",
)
class ExpertsOpener:
    """A folder of experts."""

    def accepts(self, place: str) -> bool:
        return Path(place).is_dir() and EXPERTS.begun(Path(place))

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        ensemble, tokenizer, digests = load_experts(Path(place), dtype=dtype)
        digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        config = ExpertsFolder.open(Path(place)).read_config()
        values = {"experts": len(digests), "data": tree(config.run.data)}
        about = Provenance(str(Path(place).absolute()), "experts", digest, values=values)
        return Opened(ensemble, tokenizer, about)
