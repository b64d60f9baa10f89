"""The bridge to Hugging Face transformers: to a stock class, from one, and to a folder that anything there loads.

`bridge/` has a file for each family: with query-key norm a model is a `Qwen3ForCausalLM`, without it a `LlamaForCausalLM`, with
biases on queries, keys and values a `Qwen2ForCausalLM`, and so on. Weights move over exactly: the fused matrices are
split by rows, or stacked again, and nothing is rounded; but a model with an `input_scale` or an
`output_scale`, which the stock classes have not, leaves with them multiplied into its embedding and its last norm.
A `Transformer` has no dropout: what a configuration says of it is for training there, and changes no logit.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoestring import atomic
from shoestring.errors import UsageError
from shoestring.model.bridge.family import Family, WeightPlace, family_holding, family_of
from shoestring.model.bridge.fill import fill, taken
from shoestring.model.bridge.stock_folder import write_stock
from shoestring.model.transformer import Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_SETTINGS = "tokenizer_config.json"


def to_transformers(model: Transformer, family: str | None = None) -> "PreTrainedModel":
    """A copy on the CPU as a stock class, of the same type, with the same logits.

    family: the `model_type` of the class. None: the first whose class holds the architecture.
    Raises: UsageError where the class, or every class, cannot hold the architecture.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    require_uniform(model)
    if family is None:
        chosen, settings = family_holding(model.config)
    else:
        chosen = family_of(family)
        try:
            settings = chosen.settings(model.config)
        except UsageError as error:
            raise UsageError(f"a {family} model cannot hold this one: {error}") from None
    theirs = AutoConfig.for_model(chosen.model_type, **settings, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng(devices=[]):  # the weights it draws are replaced: leave the caller's generator alone
        copy = AutoModelForCausalLM.from_config(theirs)
    copy.to(model.dtype).load_state_dict(_Theirs(model, chosen, model.state_dict()), strict=True)
    return copy.eval()


def from_transformers(source: "PreTrainedModel") -> Transformer:
    """A copy on the CPU of a model of a family with a bridge, as a `Transformer` of the same type, with the same logits.

    Raises: UsageError for another architecture, or for a feature of a family that this model has not.
    """
    family = family_of(source.config.model_type)
    return fill(family.config(source.config), family, source.state_dict().items(), source.dtype)


def export(
    model: Transformer,
    tokenizer: Path | None,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    end: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `folder` for `AutoModelForCausalLM.from_pretrained` (safetensors) and `AutoTokenizer` to load, without transformers.

    tokenizer: the folder of the tokenizer's files; None = no tokenizer. They are copied, and its tokenizer_config.json is
    given the model's context as `model_max_length` and, where it names no pad token, its end token as that.
    dtype: of the weights.
    end: the id of the token at which generation stops, and which fills up its batches.
    weights: of the model, which is then an outline; each is asked for by itself. None: the model has them.
    Nothing appears at `folder` unless all of it is written.

    Raises: UsageError where `folder` holds something, or no stock class holds the architecture.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists already: export into a new folder")
    require_uniform(model)
    family, _ = family_holding(model.config)
    with atomic.directory(folder) as temporary:
        theirs = _Theirs(model, family, model.state_dict() if weights is None else weights)
        write_stock(temporary, family, model.config, theirs, dtype, end)
        for file in sorted(tokenizer.iterdir()) if tokenizer else ():
            if file.is_file():
                shutil.copyfile(file, temporary / file.name)
        if (temporary / TOKENIZER_SETTINGS).exists():
            _complete(temporary / TOKENIZER_SETTINGS, model.config.context)


def require_uniform(model: Transformer) -> None:
    """Raises: UsageError where layers differ in size, as pruning may leave them: no other program's format holds that."""
    if not model.config.causal:
        raise UsageError("this model sees both ways, and no stock class holds such a model: it stays a folder")
    if model.config.embedding is not None:
        raise UsageError("this model has a narrow embedding, and no stock class holds such a model: it stays a folder")
    if not model.config.uniform:
        raise UsageError(
            "this model has layers by a pattern, or spans, and no stock class holds such a model: it stays a folder"
        )
    if not model.anatomy().uniform():
        raise UsageError(
            "layers of this model differ in size, and no stock class holds such a model: it stays a folder"
        )


def _complete(path: Path, context: int) -> None:
    """Add what `Trainer`, data collators and truncation need to know of a tokenizer."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model_max_length"] = context
    if not settings.get("pad_token") and settings.get("eos_token"):
        settings["pad_token"] = settings["eos_token"]
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


class _Theirs(Mapping[str, Tensor]):
    """The weights of a model under the names of transformers, its scales multiplied in: each is made when it is asked for."""

    def __init__(self, model: Transformer, family: Family, ours: Mapping[str, Tensor]) -> None:
        config, self.ours, self.places = model.config, ours, dict(family.places(model.config))
        hidden = {"hidden_token.vector"}  # no text that is written or scored there has a hidden token
        if other := sorted((ours.keys() - hidden) ^ {place.name for place in self.places.values()}):
            raise UsageError(f"{other[0]} is not as in a plain model: fold what was changed in its layers first")
        # a tied embedding is also the head, which the last norm then puts right
        last = config.output_scale / config.input_scale if config.tied else config.output_scale
        self.factors = {"embedding.weight": config.input_scale, "norm.weight": last, "norm.bias": last}
        if config.tied:
            self.places[family.head] = WeightPlace("embedding.weight")

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, name: str) -> Tensor:
        place = self.places[name]
        factor, own = self.factors.get(place.name, 1), self.ours[place.name]
        return taken(own if factor == 1 else own * factor, place)
