"""Other parts in the layers of a native model that exists: the model and its configuration change together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import find
from shoestring.model.block import Block, Place
from shoestring.model.blocks import Blocks
from shoestring.model.config import ModelConfig
from shoestring.model.hidden_token import HiddenToken
from shoestring.model.initialise import initialise
from shoestring.model.layout import Pattern, SpanAt, places
from shoestring.model.span import span_of


class ChangedParts:
    """What edits put in a `Transformer` in place of what is there. The configuration says so from then on."""

    def __init__(self, model: Blocks) -> None:
        self._model = model

    @property
    def model(self) -> Blocks:
        """The model itself."""
        return self._model

    def swap_token_mixers(self, at: str, choice: Choice) -> None:
        """Put new token mixers in some layers, drawn from torch's global generator, silent at first.

        at: as `model.layout.places` reads it. Raises: UsageError where the model has no such layer, or the mixer does not fit.
        """
        model, blocks = self.model, self.model.blocks
        pattern = Pattern(at, token_mixer=choice)
        try:
            numbers = places(at, len(blocks))
            config = replace(model.config, pattern=(*model.config.pattern, pattern))
            alone = config.layer(numbers[0])
            try:
                choice.build(alone.width, alone.heads, alone.key_value_heads, alone.head_width)
            except ValueError:  # it has keys of each head
                pattern = replace(pattern, key_value_heads=alone.heads)
                config = replace(model.config, pattern=(*model.config.pattern, pattern))
            for number in numbers:
                made = Block(config.layer(number), Place(number, len(blocks), config.context))
                mixer: Any = made.token_mixer
                initialise(mixer, mixer, mixer, [mixer.output])
                old = next(blocks[number].token_mixer.parameters())  # type: ignore[union-attr]
                blocks[number].token_mixer = mixer.to(old.device, old.dtype).train(model.training)
        except ValueError as error:
            raise UsageError(f"other token mixers: {error}") from None
        self._configure(config)

    def numbers(self, at: str) -> tuple[int, ...]:
        """The layers that `at` names, as `model.layout.places` reads it. Raises: UsageError where there are none such."""
        try:
            return places(at, len(self.model.blocks))
        except ValueError as error:
            raise UsageError(str(error)) from None

    def swap_channel_mixers(self, at: str, choice: Choice) -> dict[int, nn.Module]:
        """Put new channel mixers in some layers, drawn from torch's global generator, silent at first.

        at: as `model.layout.places` reads it. Returns those that there were, by layer. Raises: UsageError where the model has no
        such layer, or the mixer does not fit.
        """
        model, blocks, old = self.model, self.model.blocks, dict[int, nn.Module]()
        try:
            config = replace(model.config, pattern=(*model.config.pattern, Pattern(at, channel_mixer=choice)))
            for number in places(at, len(blocks)):
                alone = config.layer(number)
                mixer: Any = choice.build(alone.width, alone.hidden)
                told: Any = getattr(mixer, "placed", None)
                if told is not None:
                    told(Place(number, len(blocks), config.context))
                initialise(mixer, mixer, mixer, [mixer.output])
                block: Any = blocks[number]
                old[number] = block.channel_mixer
                like = next(block.channel_mixer.parameters())
                block.channel_mixer = mixer.to(like.device, like.dtype).train(model.training)
        except ValueError as error:
            raise UsageError(f"other channel mixers: {error}") from None
        self._configure(config)
        return old

    def restate_experts(self, layers: Sequence[int]) -> None:
        """Have the configuration say how many experts these layers have now, how wide they are, and to how many a token goes."""
        changes = dict[int, dict[str, Any]]()
        for number in layers:
            mixer: Any = self.model.blocks[number].channel_mixer
            options = changes[number] = {"experts": mixer.experts, "expert_hidden": mixer.output.weight.shape[2]}
            router = self.model.config.layer(number).channel_mixer.options["router"]
            if "active" in router:
                options["router"] = {**router, "active": round(mixer.router.active)}
        self.restate_channel_mixers(changes)

    def restate_channel_mixers(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Have the configuration say what channel mixers have become. changes: options that are others now, by layer."""
        config = self.model.config
        more = [
            Pattern(str(number), channel_mixer=config.layer(number).channel_mixer.with_options(**options))
            for number, options in changes.items()
        ]
        self._configure(replace(config, pattern=(*config.pattern, *more)))

    def swap_residuals(self, at: str, residual: str) -> None:
        """As `SwapsResiduals.swap_residuals`."""
        model, choice = self.model, Choice.of("model", residual, kind="residual")
        try:
            for number in places(at, len(model.blocks)):
                old = model.config.layer(number).residual.name
                if old != "pre_norm":
                    raise UsageError(f"layer {number} has the residual {old}, not pre_norm: name others with 'at'")
                block: Any = model.blocks[number]
                block.residual = choice.build(model.config.width)
                block.look()
            config = replace(model.config, pattern=(*model.config.pattern, Pattern(at, residual=choice)))
        except ValueError as error:
            raise UsageError(f"{residual}: {error}") from None
        self._configure(config)

    def mixers_from_attention(self, at: str, mixer: str, options: Mapping[str, Any]) -> dict[int, nn.Module]:
        """As `ConvertsAttention.mixers_from_attention`."""
        found: dict[int, nn.Module] = {}
        for number, choice in self._choices(at, mixer, options).items():
            own, old = self.model.config.layer(number), self._mixer(number)
            made = choice.build(own.width, own.heads, own.key_value_heads, own.head_width)
            self._take_over(number, old, made)
            found[number] = made
        return found

    def convert_attention(self, at: str, mixer: str, options: Mapping[str, Any]) -> dict[int, nn.Module]:
        """As `ConvertsAttention.convert_attention`. What a mixer has beside is drawn from torch's global generator."""
        numbers = list(self._choices(at, mixer, options))
        for number in numbers:
            self.convert_token_mixers(str(number), mixer, **options)
        return {number: self._mixer(number) for number in numbers}

    def _mixer(self, number: int) -> nn.Module:
        return self.model.get_submodule(f"blocks.{number}.token_mixer")

    def _choices(self, at: str, mixer: str, options: Mapping[str, Any]) -> dict[int, Choice]:
        """Of each layer, the new mixer with the options of the attention that is there."""
        try:
            numbers = places(at, len(self.model.blocks))
        except ValueError as error:
            raise UsageError(f"{mixer}: {error}") from None
        found = {}
        for number in numbers:
            kept = self.model.config.layer(number).token_mixer
            if kept.name != "attention":
                raise UsageError(
                    f"{mixer}: layer {number} has the token mixer {kept.name}, not attention: name others with 'at'"
                )
            found[number] = Choice.of("model", mixer, kind="token mixer", **{**kept.options, **options})
        return found

    @staticmethod
    def _take_over(number: int, old: Any, new: Any) -> None:
        if old.split != new.split:
            raise UsageError(f"layer {number} has other heads than its model says: convert first, and prune after that")
        for part in ("qkv", "query_norm", "key_norm", "output"):
            setattr(new, part, getattr(old, part))

    def hide_tokens(self, vector: Tensor, both_ways: bool) -> None:
        """Let the model read `HIDDEN`, as `vector` [width], and see both ways if that is wanted.

        Raises: UsageError where a layer reads tokens in order.
        """
        model = self.model
        if len(vector) != model.config.width:
            raise UsageError("this model's embedding is narrower than it: give --model.hides true as it is made")
        mixers: list[Any] = [block.token_mixer for block in model.blocks]
        for layer, mixer in enumerate(mixers):
            if both_ways and not getattr(mixer, "both_ways", False):
                raise UsageError(f"layer {layer} has {type(mixer).__name__}, which reads tokens in order: no both_ways")
        if both_ways:
            for mixer in mixers:
                mixer.causal = False
        hidden = HiddenToken(len(vector))
        hidden.vector = nn.Parameter(vector.clone())
        model.hidden_token = hidden
        self._configure(replace(model.config, hides=True, causal=model.config.causal and not both_ways))

    def convert_token_mixers(self, at: str, name: str, **options: Any) -> None:
        """Put the token mixer `name` in some layers, with all weights of theirs: what it has beside them starts as in a new model.

        at: as for `swap_token_mixers`. options: of the new mixer; those that are not given are the old one's, where both have them.
        Raises: UsageError where the layers have different mixers, or the new one has no place for a weight or an option of theirs.
        """
        blocks, configs = self.model.blocks, self.model.config
        try:
            numbers = places(at, len(blocks))
        except ValueError as error:
            raise UsageError(f"other token mixers: {error}") from None
        each = [configs.layer(number) for number in numbers]
        old = each[0].token_mixer
        if any(one.token_mixer != old for one in each):
            raise UsageError(f"layers {at} have different token mixers: convert those of one kind at a time")
        known = find("model", name, "token mixer").options().model_fields
        usual = old.card.options().model_fields
        lost = [key for key, value in old.options.items() if key not in known and value != usual[key].default]
        if lost:
            raise UsageError(
                f"{name} has no option {lost[0]}, which {old.name} has set: these layers cannot be converted"
            )
        shared = {key: value for key, value in old.options.items() if key in known}
        choice = Choice.of("model", name, kind="token mixer", **{**shared, **options})
        weights = [blocks[number].token_mixer.state_dict() for number in numbers]  # type: ignore[union-attr]
        sizes = [(one.width, one.heads, one.key_value_heads, one.head_width) for one in each]
        try:
            for before, size in zip(weights, sizes, strict=True):
                shapes = {key: weight.shape for key, weight in choice.build(*size).state_dict().items()}
                homeless = [key for key, weight in before.items() if shapes.get(key) != weight.shape]
                if homeless:
                    raise UsageError(f"{name} has no place for {old.name}'s {homeless[0]}: swap the mixers, and train")
        except ValueError as error:
            raise UsageError(f"other token mixers: {error}") from None
        self.swap_token_mixers(at, choice)
        for number, before in zip(numbers, weights, strict=True):
            blocks[number].token_mixer.load_state_dict(before, strict=False)  # type: ignore[union-attr]

    def wrap(self, at: str, choice: Choice) -> None:
        """Wrap a run of layers in a span, its weights drawn from torch's global generator.

        Raises: UsageError where a layer of it is in a span already, or the span does not fit.
        """
        model, config = self.model, self.model.config
        try:
            wrapped = replace(config, span=(*config.span, SpanAt(at, choice)))
        except ValueError as error:
            raise UsageError(f"another span: {error}") from None
        made = span_of(SpanAt(at, choice), config)
        initialise(made, made, made, [])
        like = next(model.parameters())
        made = made.to_empty(device="meta") if like.is_meta else made.to(like.device, like.dtype)
        model.spans = nn.ModuleList([*getattr(model, "spans", ()), made.train(model.training)])
        self._configure(wrapped)

    def _configure(self, config: ModelConfig) -> None:
        """What the model says of itself from now on."""
        uniform, self.model.config = self.model.config.uniform, config
        if not (uniform and config.uniform):  # layers may read other tables of positions than before
            device = self.model.device
            self.model.make_rotaries()
            self.model.to(device)
        self.model.changed()
