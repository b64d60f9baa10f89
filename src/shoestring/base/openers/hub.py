"""A model of the Hugging Face hub."""

import dataclasses
import re
from pathlib import Path

import torch

from shoestring.base.opened import Opened
from shoestring.base.openers.transformers_folder import TransformersOpener
from shoestring.base.transformers_config import CONFIG
from shoestring.errors import UsageError, first_line
from shoestring.method import method

PREFIX = "hf:"

PATTERNS = [
    CONFIG,
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
]
"""The files that are fetched: none that could hold code, and no weights but safetensors."""

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@method(
    "base.openers",
    kind="opener",
    name="hub",
    claim="fetches safetensors, configuration and tokenizer, and nothing that could hold code",
    cost="fetches the weights once; then as the opener transformers",
)
class HubOpener:
    """A model of the hub: hf:NAME, or hf:NAME@REVISION.

    It is fetched into the cache of huggingface_hub, whose settings hold: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN.
    """

    def accepts(self, place: str) -> bool:
        return place.startswith(PREFIX)

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        name, _, revision = place.removeprefix(PREFIX).partition("@")
        if not _NAME.fullmatch(name) or (revision and not re.fullmatch(r"[\w./-]+", revision)):
            raise UsageError(f"{place} names no model of the hub: write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION")
        folder = _fetched(name, revision or None)
        opened = TransformersOpener().open(str(folder), dtype)
        values = {**opened.about.values, "revision": folder.name}
        return dataclasses.replace(
            opened, about=dataclasses.replace(opened.about, place=place, kind="hub", values=values)
        )


def _fetched(name: str, revision: str | None) -> Path:
    """The folder of the cache that holds a model. Raises: UsageError where it is not there and cannot be fetched."""
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    asked = f"{name}@{revision}" if revision else name
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except GatedRepoError:
        raise UsageError(
            f"hf:{asked} is given to those who accepted its terms: do so on its page, and set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"hf:{asked}: the hub has the model, and not this revision") from None
    except RepositoryNotFoundError:
        raise UsageError(f"hf:{asked}: the hub has no such model, or shows it to others only") from None
    except LocalEntryNotFoundError:
        raise UsageError(
            f"hf:{asked} is not in the cache, and the hub cannot be reached (HF_HUB_OFFLINE forbids it, or there is no network)"
        ) from None
    except Exception as error:  # of the network, in many kinds
        raise UsageError(f"hf:{asked} cannot be fetched: {first_line(error)}") from None
    if not (folder / CONFIG).is_file():
        raise UsageError(f"hf:{asked} has no {CONFIG}: it is no transformers model")
    return folder
