"""How surgery sees a wrapped model: its layers, and the linear layers within them."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.anatomy import Axis, Matrix
from shoestring.contract.attention_rule import AttentionRule, AttentionSizes, Ruled, Turn
from shoestring.contract.lending import require_lenders
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.anatomy import with_copies
from shoestring.model.wrapped_rules import attention_of, rule_of, set_rule


class Stock(LanguageModule):
    """A wrapped model as its anatomy sees it. `Wrapped` is one.

    config: of the stock model.
    kinds: the type of each layer, where they differ.
    """

    config: Any
    kinds: list[str]
    context: int

    @property
    @abstractmethod
    def windowed(self) -> bool:
        """Whether some layer sees only so many of the latest tokens."""

    @abstractmethod
    def layers(self) -> list[str]:
        """The names of the decoder layers, in order."""

    @abstractmethod
    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""

    @abstractmethod
    def get_output_embeddings(self) -> Any:
        """The module that turns hidden states into logits."""


class StockRotation:
    """What turns queries and keys of a wrapped model: its own module. A factor on cosines and sines is left out."""

    def __init__(self, rotary: Any) -> None:
        self.rotary = rotary

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * self.rotary.inv_freq.float()
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()


class WrappedAnatomy(Ruled):
    """The `Anatomy` of a `Wrapped` model. Its axes are its layers: which weights go together inside a layer its makers know."""

    def __init__(self, model: Stock) -> None:
        self._model = model

    @property
    def model(self) -> Stock:
        """The model itself."""
        return self._model

    @property
    def layers(self) -> list[str]:
        return self._model.layers()

    @property
    def embedding(self) -> str:
        return self._name(self._model.get_input_embeddings())

    @property
    def head(self) -> str | None:
        head = self._model.get_output_embeddings()
        return None if head.weight is self._model.get_input_embeddings().weight else self._name(head)

    def _name(self, wanted: nn.Module) -> str:
        return next(name for name, module in self._model.named_modules() if module is wanted)

    def axes(self, kind: str) -> list[Axis]:
        """As `Anatomy.axes`; of the kind 'layer' alone."""
        return [Axis("layer", None, len(self.layers))] if kind == "layer" else []

    def matrices(self) -> Iterator[Matrix]:
        """As `Anatomy.matrices`. Of GPT-2's layers, whose weight is [in, out], the weight here is a transposed view."""
        from transformers.pytorch_utils import Conv1D

        for layer, prefix in enumerate(self.layers):
            for name, module in self._model.get_submodule(prefix).named_modules():
                if isinstance(module, nn.Linear | Conv1D):
                    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
                    yield Matrix(f"{prefix}.{name}", layer, weight)

    def resized(self) -> None:
        """Nothing: no axis of a wrapped model can be cut."""

    def attention_sizes(self) -> list[AttentionSizes]:
        """As `Ruled.attention_sizes`. Raises: UsageError too where layers see a window of the context only."""
        model, config = self._model, self._model.config
        if model.windowed:
            raise UsageError("layers of this model see a window of the context only: a rule would not heed it")
        found = []
        for name in self.layers:
            attention_of(model.get_submodule(name))
            heads = config.num_attention_heads
            found.append(
                AttentionSizes(config.hidden_size, heads, getattr(config, "num_key_value_heads", None) or heads)
            )
        return found

    def set_rules(self, rules: Mapping[int, AttentionRule | None]) -> None:
        """As `Ruled.set_rules`."""
        for number, rule in rules.items():
            set_rule(attention_of(self._model.get_submodule(self.layers[number])), rule)
        self._model.changed()

    def rules(self) -> list[AttentionRule | None]:
        """As `Ruled.rules`."""
        return [rule_of(self._model.get_submodule(name)) for name in self.layers]

    def turn(self) -> Turn:
        """As `Ruled.turn`."""
        return StockRotation(self._rotary())

    def extend_context(self, context: int, theta: float | None) -> None:
        """As `Ruled.extend_context`."""
        rotary, config = self._rotary(), self._model.config
        config.max_position_embeddings = context
        if theta is not None:
            if isinstance(getattr(config, "rope_parameters", None), dict):
                config.rope_parameters = {**config.rope_parameters, "rope_theta": theta}
            else:
                config.rope_theta = theta
            made = type(rotary)(config=config).to(self._model.device)
            self._model.set_submodule(self._name(rotary), made)
        self._model.context = context
        self._model.changed()

    def _rotary(self) -> Any:
        found = [one for name, one in self._model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
        if len(found) != 1 or not hasattr(found[0], "inv_freq"):
            raise UsageError(f"a {self._model.config.model_type} model is not told positions by one rotary table")
        return found[0]

    def keep_layers(self, numbers: Sequence[int]) -> None:
        """As `Anatomy.keep_layers`. A layer may be kept once only."""
        model, names = self._model, self.layers
        if not numbers or sorted(set(numbers)) != sorted(numbers) or not all(0 <= n < len(names) for n in numbers):
            raise UsageError(f"layers to keep are numbers from 0 to {len(names) - 1}, each once, not {list(numbers)}")
        self._put([model.get_submodule(names[number]) for number in numbers], numbers)

    def copy_layers(self, numbers: Sequence[int]) -> None:
        """As `Anatomy.copy_layers`."""
        layers = [self._model.get_submodule(name) for name in self.layers]
        made = with_copies(layers, numbers)
        self._put(made, [number for number in range(len(layers)) for _ in range(1 + (number in numbers))])

    def _put(self, layers: Sequence[nn.Module], numbers: Sequence[int]) -> None:
        """Have these layers in the model. numbers: of each, which one it was, or is a copy of."""
        require_lenders(layers)
        model = self._model
        model.set_submodule(self.layers[0].rpartition(".")[0], nn.ModuleList(layers))
        for place, layer in enumerate(layers):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):  # by which it finds its part of the cache
                    module.layer_idx = place  # type: ignore[assignment]
        config: Any = model.config
        config.num_hidden_layers = len(layers)
        if model.kinds:
            model.kinds = [model.kinds[number] for number in numbers]
            config.layer_types = list(model.kinds)
        model.changed()
