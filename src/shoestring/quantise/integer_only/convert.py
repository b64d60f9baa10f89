"""A trained `Transformer` made one of integers: ranges are seen on text, weights rounded, and ratios of scales fixed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.block import Block
from shoestring.model.layernorm import LayerNorm
from shoestring.model.norm import RMSNorm
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.quantise.integer_only.arithmetic import STREAM_BITS
from shoestring.quantise.integer_only.attention import angles
from shoestring.quantise.integer_only.model import IntegerOnlyTransformer
from shoestring.quantise.integer_only.norm import IntegerOnlyNorm
from shoestring.quantise.integer_only.part import OUTPUT
from shoestring.quantise.integer_only.ranges import Ranges
from shoestring.quantise.integer_only.supported import counterparts, require_supported
from shoestring.quantise.integer_only.tables import head_shift

STREAM, NORMED, NARROWED = "stream", "normed", "narrowed"

PLAIN = (nn.Linear, nn.Identity, RMSNorm, LayerNorm)
"""What the parts of a layer are made of, exactly: a subclass computes something else."""


def require_convertible(model: LanguageModel) -> Transformer:
    """`model`, if it has an integer-only counterpart. Raises: UsageError, naming the part and what is supported."""
    if type(model) is not Transformer:
        raise UsageError(
            f"no integer-only form: a {type(model).__name__} is not a plain native model; supported are runs, and folders of "
            "transformers and GGUF files that open as native ones"
        )
    require_supported(model.config)
    for number, block in enumerate(model.blocks):
        own = model.config.layer(number)
        expected = {
            "token_mixer": own.token_mixer.card.target,
            "channel_mixer": own.channel_mixer.card.target,
            "token_norm": own.norm.card.target,
            "channel_norm": own.norm.card.target,
        }
        for name, module in block.named_modules():
            allowed = (expected[name],) if name in expected else (Block, own.residual.card.target, *PLAIN)
            if type(module) not in allowed:
                raise UsageError(
                    f"layer {number}: {name or 'the block'} is a {type(module).__name__}, which has no integer-only form: fold "
                    f"or merge it; supported are plain layers ({', '.join(one.__name__ for one in allowed)})"
                )
    with outline():
        sizes = {name: one.shape for name, one in Transformer(model.config).state_dict().items()}
    if sizes != {name: one.shape for name, one in model.state_dict().items()}:
        raise UsageError("no integer-only form: its layers have parts or sizes that its configuration does not hold")
    return model


@torch.no_grad()
def integer_model(model: LanguageModel, text: Sequence[Batch]) -> tuple[IntegerOnlyTransformer, Charge]:
    """(the integer-only counterpart of a model, which stays as it is; what reading the calibration text took).

    Weights are rounded to the nearest with a scale a row. Ranges are those of the model in floating point.
    Raises: UsageError for a model without a counterpart, or without text; ShoestringError, naming the part, for numbers that have
    no code.
    """
    source = require_convertible(model)
    if not text:
        raise UsageError(
            "integers have ranges that are fixed beforehand: text to calibrate on is needed, and none was given"
        )
    ranges, spent = _seen(source, text)
    made = IntegerOnlyTransformer(source.config)
    stream = ranges.wide(STREAM_BITS, STREAM)
    # the narrow matrix of a tied head has one scale for all of its columns: they are left as they are
    uneven = torch.ones_like(ranges.features(NORMED)) if source.narrows_head else ranges.uneven(NORMED)
    hidden = ranges.eight(NORMED, uneven)
    unit, narrow = _at(
        "embedding",
        lambda: made.embedding.fill(
            source.embedding.weight,
            None if source.config.embedding is None else source.narrow.weight,  # type: ignore[arg-type]
            stream / source.config.input_scale,
            uneven if made.head is None else torch.ones_like(uneven),
        ),
    )
    for number, block in enumerate(source.blocks):
        name = f"blocks.{number}"
        _at(name, lambda: _fill_block(made.blocks[number], block, ranges.under(name), stream))  # noqa: B023
    _fill_norm(made.norm, source.norm, stream, hidden * uneven)
    if made.head is None:
        inside = hidden
        if source.narrows_head:
            inside = ranges.eight(NARROWED)
            made.head_scales.fill("narrowed", narrow * hidden / inside)
    else:
        weight: Any = source.head
        inside, head = hidden, made.head
        unit = 2.0 ** -_at("head", lambda: head.fill(weight.weight.double() * uneven, 1.0))
    shift = head_shift(made.integer_head.table.codes.shape[1])
    made.head_shift.fill_(shift)
    made.logits_scale = inside * unit * 2.0**shift * source.config.output_scale
    if made.cos is not None and made.sin is not None:
        half = made.cos.shape[1]
        made.cos.copy_(angles(source.rotary.cos[:, 0, half:]))
        made.sin.copy_(angles(source.rotary.sin[:, 0, half:]))
    return made.eval(), spent


def _at(name: str, fill: Callable[[], Any]) -> Any:
    """What `fill` gives; what it raises names the part."""
    try:
        return fill()
    except ShoestringError as error:
        raise type(error)(f"{name}: {error}") from None


def _fill_block(made: Any, block: Any, ranges: Ranges, stream: float) -> None:
    for name in ("token", "channel"):
        mixer, normed = f"{name}_mixer", f"{name}_norm.{NORMED}"
        own = getattr(made, mixer)
        uneven = torch.ones_like(ranges.features(normed)) if getattr(own, "even", False) else ranges.uneven(normed)
        reads = uneven * ranges.eight(normed, uneven)
        _fill_norm(getattr(made, f"{name}_norm"), getattr(block, f"{name}_norm"), stream, reads)
        own.fill(getattr(block, mixer), ranges.under(mixer), reads, stream)


def _fill_norm(made: IntegerOnlyNorm, norm: Any, reads: float, writes: Tensor) -> None:
    made.fill(norm.weight, getattr(norm, "bias", None), norm.epsilon, reads, writes)


def _seen(model: Transformer, text: Sequence[Batch]) -> tuple[Ranges, Charge]:
    """(ranges of all that has a scale, what reading the text took)."""
    ranges, spent = Ranges(), NOTHING
    with _watching(model, ranges):
        for batch in text:
            reading = model.read(batch.inputs.to(model.device))
            if model.narrows_head:
                ranges.look(NARROWED, model.narrow.narrowed(reading.hidden / model.config.output_scale))
            spent += Charge(flops=reading.cost.flops, read=batch.targets.numel(), calls=1)
    return ranges, spent


@contextmanager
def _watching(model: Transformer, ranges: Ranges) -> Iterator[None]:
    """Have `ranges` look at all that has a scale, while the block runs."""
    handles = []

    def norm(name: str) -> Callable[..., None]:
        def look(_: nn.Module, given: tuple[Any, ...], found: Tensor) -> None:
            ranges.look(STREAM, given[0])
            ranges.look(f"{name}{NORMED}", found)

        return look

    def mixer(name: str, looks: Callable[..., dict[str, Tensor]], count: int) -> Callable[..., None]:
        def look(part: nn.Module, given: tuple[Any, ...]) -> None:
            for key, numbers in looks(part, *given[:count]).items():
                ranges.look(f"{name}.{key}", numbers)

        return look

    def output(name: str) -> Callable[..., None]:
        def look(_: nn.Module, given: tuple[Any, ...]) -> None:
            ranges.look(f"{name}.{OUTPUT}", given[0])

        return look

    try:
        handles.append(model.norm.register_forward_hook(norm("")))
        for number, block in enumerate(model.blocks):
            tokens, channels = counterparts(model.config.layer(number))
            for part, counterpart, count in (("token", tokens, 3), ("channel", channels, 1)):
                name, own = f"blocks.{number}.{part}_mixer", getattr(block, f"{part}_mixer")
                before = getattr(block, f"{part}_norm")
                handles.append(before.register_forward_hook(norm(f"blocks.{number}.{part}_norm.")))
                handles.append(own.register_forward_pre_hook(mixer(name, counterpart.looks, count)))
                handles.append(own.output.register_forward_pre_hook(output(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
