"""The folder of a transformers model."""

from pathlib import Path
from typing import Any

import torch

from shoestring.base.opened import Opened, Provenance
from shoestring.base.safetensors_files import SafetensorsTensor, common_type, outline, tensors, weight_files
from shoestring.base.stock_model import open_stock_model
from shoestring.base.transformers_config import CONFIG, read_config
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.data.tokenizer import TextTokenizer
from shoestring.digests import digest_of
from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.json_files import NotJson, parse_json, read_json
from shoestring.method import method
from shoestring.model.bridge.family import Family, families
from shoestring.model.bridge.fill import fill
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.model.wrapped import Wrapped


@method(
    "base.openers",
    kind="opener",
    name="transformers",
    claim="the logits of the stock class, by a native model where its family has a bridge, else by the class itself",
    cost="reads the weights twice; the memory of the model, and of its largest tensor once more",
)
class TransformersOpener:
    """A transformers folder.

    Weights are safetensors. No code from the folder runs, and nothing is unpickled.
    """

    def accepts(self, place: str) -> bool:
        return (Path(place) / CONFIG).is_file()

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        folder = Path(place)
        if (folder / "adapter_config.json").exists():
            raise UsageError(f"{folder} holds an adapter of another model: open that model")
        files = weight_files(folder)
        stored = outline(files)
        config = read_config(folder, len(stored))
        ends = _ends(folder, config)
        # the tokenizer first: what making it takes is given back before the model is there
        tokenizer, said = _tokenizer(folder, config.get_text_config().vocab_size, ends)
        model, notes = _model(folder, config, stored, dtype or common_type(stored))
        values = {"model_type": config.model_type, "native": not isinstance(model, Wrapped), "ends": ends}
        about = Provenance(
            str(folder.absolute()),
            "transformers",
            digest_of([*files, folder / CONFIG]),
            (*notes, *said),
            _template(folder),
            values,
        )
        return Opened(model, tokenizer, about)


def _model(
    folder: Path, config: Any, stored: dict[str, SafetensorsTensor], dtype: torch.dtype
) -> tuple[LanguageModel, tuple[str, ...]]:
    """(the model, what is to be said of it)."""
    family = next((one for one in families() if one.model_type == config.model_type), None)
    reason = f"models of type '{config.model_type}' have no native counterpart"
    if family is not None:
        try:
            ours = family.config(config)
        except UsageError as error:
            reason = str(error)
        except Exception as error:  # a value of another type than the bridge expects
            raise UsageError(f"{folder}: its configuration makes no model: {first_line(error)}") from None
        else:
            return _filled(folder, ours, family, stored, dtype), ()
    wrapped = Wrapped(open_stock_model(folder, config, stored, dtype))
    _refuse_other_logits(folder, wrapped)
    return wrapped, (f"transformers' own class computes: {reason}",)


def _filled(
    folder: Path, config: ModelConfig, family: Family, stored: dict[str, SafetensorsTensor], dtype: torch.dtype
) -> Transformer:
    try:
        return fill(config, family, tensors(stored), dtype).eval()
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None


@torch.no_grad()
def _refuse_other_logits(folder: Path, wrapped: Wrapped) -> None:
    """Raises: UsageError where the class computes something else when its layers and its head are asked one after the other."""
    ids = torch.arange(min(4, wrapped.about.vocabulary, wrapped.about.context))[None]
    try:
        one, other = wrapped.stock(ids).logits.float(), wrapped.read(Inputs(ids)).logits().float()
    except UsageError:
        raise
    except Exception as error:  # whatever its class says of foreign sizes
        raise UsageError(f"{folder} makes no {wrapped.config.model_type} model: {first_line(error)}") from None
    if not torch.allclose(one, other, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise UsageError(
            f"{folder}: a {wrapped.config.model_type} model computes its head in a way that is not supported"
        )


def _ends(folder: Path, config: Any) -> list[int]:
    """The ids of the tokens at which generation stops: of generation_config.json, else of the configuration."""
    said = read_json(folder / "generation_config.json", dict, "an object") or {}
    found = said.get("eos_token_id")
    if found is None:
        found = getattr(config.get_text_config(), "eos_token_id", None)
    listed = found if isinstance(found, list) else [found]
    most = config.get_text_config().vocab_size
    return [one for one in listed if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < most]


def _tokenizer(folder: Path, vocabulary: int, ends: list[int]) -> tuple[TextTokenizer | None, tuple[str, ...]]:
    """(the tokenizer of a folder, None where it cannot be used; what there is to say of it)."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return None, ("it has no tokenizer.json and no tokenizer.model",)
    try:
        tokenizer = TextTokenizer.load(folder, end=ends[0] if ends else None)
        if tokenizer.vocabulary > vocabulary:
            raise UsageError(f"it has {tokenizer.vocabulary} ids, and the model {vocabulary}")
    except UsageError as error:
        return None, (f"its tokenizer cannot be used: {error}",)
    return tokenizer, tokenizer.caveats


def _template(folder: Path) -> str | None:
    """The chat template: a file of its own, or an entry of tokenizer_config.json. None where there is none."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ShoestringError(f"{folder / 'chat_template.jinja'} cannot be read: {first_line(error)}") from None
    path = folder / "tokenizer_config.json"
    try:
        said = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, NotJson) as error:
        raise ShoestringError(f"{path} cannot be read: {first_line(error)}") from None
    found = said.get("chat_template") if isinstance(said, dict) else None
    if isinstance(found, list):  # several by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict) and _hashable(one)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _hashable(one: dict[str, Any]) -> bool:
    return isinstance(one.get("name"), str)
