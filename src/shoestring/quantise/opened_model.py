"""The model of a quantised file: its matrices packed where a kernel multiplies them so, or all of it in plain numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from shoestring.base.quantised_model import QuantisedTransformer
from shoestring.base.transformers_config import read_config
from shoestring.config import build
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.lowbit.grouped import GroupedEmbedding, GroupedLinear
from shoestring.lowbit.integer_linear import IntegerLinear
from shoestring.model.config import ModelConfig
from shoestring.model.outline import outline
from shoestring.model.rotary_kinds import rotary_tables
from shoestring.model.transformer import Transformer
from shoestring.model.wrapped import Wrapped
from shoestring.quantise.folder import STOCK, QuantisedFile
from shoestring.quantise.format import Encoded
from shoestring.quantise.quantisation import install, round_inputs
from shoestring.quantise.tables import table_names
from shoestring.quantise.transformed_linear import TransformedLinear

TABLES = 1 << 28
"""Bytes that the tables of rotary positions may take, which are in no file: a context of 262,144 where heads are 128 wide."""

TABLE_MODULES = ("embedding", "head")


@torch.no_grad()
def plain_model(folder: Path, file: QuantisedFile, dtype: torch.dtype) -> LanguageModule:
    """The model with plain matrices of that type, ready to be used. Raises: ShoestringError where the file is no such model."""
    if not file.config:
        return _wrapped(folder, file).to(dtype)
    with _meaning(folder):
        config = _config(folder, file)
        with outline():
            model = Transformer(config)
        state = {f"{name}.weight": one.dequantise() for name, one in file.matrices.items()}
        _fill(model, state | {name: _wide(one) for name, one in file.rest.items()})
        model.rotary = rotary_tables(config)
        return model.to(dtype).eval()


@torch.no_grad()
def packed_model(folder: Path, file: QuantisedFile) -> tuple[LanguageModule, tuple[str, ...]]:
    """(the model whose matrices stay packed where there is a kernel for them, a line each of what is not). In float32."""
    if not file.config:
        said = "its matrices are plain numbers here: layers of transformers' own classes are not packed"
        plain = plain_model(folder, file, torch.float32)
        round_inputs(plain, file.matrices)
        return plain, (said, *said_of_inputs(file.matrices, False))
    with _meaning(folder):
        config = _config(folder, file)
        packed = {name: one for name, one in file.matrices.items() if stays_packed(one)}
        with outline():
            model = QuantisedTransformer(config)
        wide = {name: one for name, one in file.matrices.items() if name not in packed}
        state = {f"{name}.weight": one.dequantise() for name, one in wide.items()}
        state |= {name: _wide(one) for name, one in file.rest.items()}
        _expect(model, state, packed)
        for name, one in packed.items():
            bias = state.pop(f"{name}.bias", None)
            model.set_submodule(name, _packed(name, one, bias))
        model.load_state_dict(state, strict=False, assign=True)
        round_inputs(model, wide)
        ready = model.ready()
    notes = said_of_inputs(file.matrices)
    if unknown := [one for one in wide.values() if one.inputs is None]:
        kinds = sorted({one.format.choice.name for one in unknown})
        notes.append(
            f"{len(unknown)} matrices in {', '.join(kinds)} are plain numbers here: no kernel multiplies them packed"
        )
    if isinstance(ready.native, str):
        notes.append(f"slow: every token goes module by module, as {ready.native}")
    return ready, tuple(notes)


def stays_packed(one: Encoded) -> bool:
    """Whether a kernel multiplies a matrix as it is packed, with its inputs rounded as the model says."""
    return one.native is not None if one.inputs is None else _integer(one)


def _integer(one: Encoded) -> bool:
    """Whether inputs and matrix are multiplied as integers by the kernel for one scale a row."""
    return one.inputs is not None and one.inputs.rounding.integer and one.integers is not None


def said_of_inputs(matrices: Mapping[str, Encoded], packs: bool = True) -> list[str]:
    """How inputs are rounded, a line each: as integers, or in plain numbers. packs: whether the model's layers can be packed."""
    rounded = [one for one in matrices.values() if one.inputs is not None]
    real = sum(packs and _integer(one) for one in rounded)
    said = []
    if real:
        said.append(f"{real} matrices and their inputs, in 8 bits a token, are multiplied as integers")
    if len(rounded) > real:
        how = sorted(
            {f"{one.inputs.rounding.choice.name}, {one.inputs.rounding.bits} bits" for one in rounded if one.inputs}
        )
        said.append(
            f"the inputs of {len(rounded) - real} matrices ({'; '.join(how)}) are rounded, and multiplied in plain numbers: that "
            "simulates the loss of such products, not their speed or memory"
        )
    return said


def _packed(name: str, one: Encoded, bias: Tensor | None) -> nn.Module:
    """What takes the place of a linear layer or an embedding."""
    made: nn.Module
    if _integer(one):
        assert one.integers is not None
        made = IntegerLinear.of(one.integers, one.parameters["scale"].float(), int(one.format.bits), bias)
        return made if one.pair is None else TransformedLinear(made, one.pair)
    assert one.native is not None
    if name in TABLE_MODULES:
        return GroupedEmbedding.of(one.native, one.columns)
    made = GroupedLinear.of(one.native, one.columns, bias)
    return made if one.pair is None else TransformedLinear(made, one.pair)


@contextmanager
def _meaning(folder: Path) -> Iterator[None]:
    """What a file asks for and cannot be is said of the file."""
    try:
        yield
    except (UsageError, OverflowError, RecursionError, ValueError, RuntimeError) as error:
        raise ShoestringError(f"{folder} is no model of this program: {first_line(error)}") from None


def _config(folder: Path, file: QuantisedFile) -> ModelConfig:
    config = build(ModelConfig, file.config)
    if 2 * 4 * config.head_width * config.context > TABLES:
        raise ShoestringError(f"{folder}: a context of {config.context} is beyond what a quantised model may have")
    if config.layers > len(file.matrices) + len(file.rest):
        raise ShoestringError(f"{folder} has too few tensors for {config.layers} layers")
    return config


def _fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    _expect(model, state, {})
    model.load_state_dict(state, strict=True, assign=True)


def _expect(model: nn.Module, state: dict[str, Tensor], packed: dict[str, Encoded]) -> None:
    """Raises: ShoestringError where tensors and matrices are not all that the model has, or are of other shapes."""
    there: dict[str, tuple[int, ...]] = {name: tuple(one.shape) for name, one in state.items()}
    there |= {f"{name}.weight": (one.rows, one.columns) for name, one in packed.items()}
    wanted = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    for name in sorted(wanted.keys() ^ there.keys()):
        raise ShoestringError(f"it {'lacks' if name in wanted else 'has, and its model has not,'} the tensor {name}")
    for name, shape in wanted.items():
        if there[name] != shape:
            raise ShoestringError(f"{name} is {list(there[name])}, and the model's is {list(shape)}")


def _wide(one: Tensor) -> Tensor:
    return one.float() if one.is_floating_point() else one


def _wrapped(folder: Path, file: QuantisedFile) -> Wrapped:
    """A model of transformers' own class. Raises: ShoestringError where the tensors are not its own."""
    from transformers import AutoModelForCausalLM

    config = read_config(folder / STOCK, len(file.matrices) + len(file.rest))
    there = sum(one.numel() for one in file.rest.values())
    there += sum(one.rows * one.columns for one in file.matrices.values())
    with _meaning(folder):
        with outline():
            described = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
        if described > 1.05 * there + 1024:
            raise ShoestringError(
                f"{folder}: its configuration describes {described:,} weights, and it holds {there:,}"
            )
        with torch.random.fork_rng(devices=[]):
            stock = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        model = Wrapped(stock)
        tables = {name: one for name, one in file.matrices.items() if name in table_names(model)}
        state = {name: _wide(one) for name, one in file.rest.items()}
        state |= {f"{name}.weight": one.dequantise() for name, one in tables.items()}
        missing, foreign = model.load_state_dict(state, strict=False)
        others = {f"{name}.weight" for name in file.matrices if name not in tables}
        if foreign or set(missing) - others:
            raise ShoestringError(f"{folder}: its tensors are not those of its model")
        install(model, {}, {name: one for name, one in file.matrices.items() if name not in tables})
    return model
