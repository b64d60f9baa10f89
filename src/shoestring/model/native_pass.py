"""The blocks of a Transformer in one native call, where the library knows their parts and nobody listens to what they say."""

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from shoestring.contract.cache import Cache
from shoestring.errors import ShoestringError
from shoestring.kernels import kernel_in_use
from shoestring.kernels.attention import BlockRows, BlockSpan, Layers
from shoestring.kernels.choice import TORCH
from shoestring.kernels.decoder import (
    DENSE,
    FLOATS,
    CachePlaces,
    Decoder,
    KernelMatrix,
    Layer,
    NativeCache,
    NativeMatrix,
    Norm,
)
from shoestring.model.attention import Attention
from shoestring.model.norm import RMSNorm
from shoestring.model.pre_norm import PreNorm
from shoestring.model.swiglu import SwiGLU

FEW = 16
"""Tokens of a pass up to which matrices of numbers are multiplied natively: beyond, torch's products are faster.

Where a processor has no instructions for bfloat16, those of torch are slower at any number."""


def heard() -> bool:
    """Whether somebody wants to see what torch computes: for gradients, a compiler, another type, or to count."""
    return (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
    )


def worth(tokens: int, dtypes: Collection[torch.dtype]) -> bool:
    """Whether products of so many tokens with matrices of these types are to be native. In one-off timings, AVX2 on two cores,
    bfloat16 was 4 times as fast so at 8 to 64 tokens, and float32 up to twice as fast below 16 and no faster beyond."""
    return tokens <= FEW or (torch.float32 not in dtypes and kernel_in_use() == "avx2")


class NativePass:
    """All blocks of a model, as the native decoder reads them: made of the tensors that are in them now.

    blocks: of `Transformer`. The sizes are those of its configuration.
    Raises: ShoestringError, naming the part, where one is of another kind than the decoder computes.
    """

    def __init__(
        self, blocks: nn.ModuleList, width: int, heads: int, key_value_heads: int, head_width: int, hidden: int
    ) -> None:
        layers = []
        for number, block in enumerate(blocks):
            try:
                layers.append(_layer(block))
            except ShoestringError as error:
                raise ShoestringError(f"blocks.{number} has {error}") from None
        self.decoder = Decoder(layers, width, heads, key_value_heads, head_width, hidden)
        self._shape, self.blocks, self._count = (key_value_heads, head_width), blocks, len(blocks)
        modules = [module for module in blocks.modules() if module is not blocks]
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        found = [
            (named, name, part)
            for module in blocks.modules()
            for named in (module._modules, module._parameters, module._buffers)
            for name, part in named.items()
            if part is not None
        ]
        self._where, self._names, self._parts = zip(*found, strict=True)
        self._tensors = [part for part in self._parts if isinstance(part, Tensor)]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]

    def read(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor | None:
        """x [B, T, width] after all blocks; None, and nothing is done, where this pass must go module by module.

        cos, sin: as `Attention.forward` takes them. cache: a pass of it has begun.
        """
        rows, length, width = x.shape
        if not x.is_cpu or not x.numel() or x.dtype not in FLOATS or kernel_in_use() == TORCH:
            return None
        if self.decoder.dense and not worth(rows * length, self.decoder.dense):
            return None
        if heard() or any(self._hooks) or not self._unchanged():
            return None
        if cache is None:
            places: CachePlaces | None = self._beside(rows, length)
        else:
            # of the class, whose answer Python keeps: of an instance it looks for each method anew, for each token
            places = cache.places() if issubclass(type(cache), NativeCache) else None  # type: ignore[attr-defined]
        if places is None:
            return None
        stream = torch.empty(rows * length, width)
        stream.copy_(x.reshape(rows * length, width))
        tables = [
            table.expand(rows, length, 1, -1).reshape(rows * length, -1).float().contiguous() for table in (cos, sin)
        ]
        if not self.decoder.read(stream, places, *tables):
            return None
        return stream.view(x.shape).to(x.dtype)

    def _beside(self, rows: int, length: int) -> CachePlaces:
        """For a pass that keeps nothing: each layer writes over what the one before it wrote."""
        heads, width = self._shape
        keys, values = torch.empty(2, rows, heads, length, width)
        spans = [BlockSpan(row * length, length, 0, (row,)) for row in range(rows)]
        return CachePlaces(Layers([(keys, values)] * self._count), BlockRows(spans, length))

    def _unchanged(self) -> bool:
        """Whether the parts are those that there were, and every tensor where it was. It may hold other numbers."""
        # by `map`, which is in C: this is asked for each token
        same = all(map(operator.is_, map(dict.get, self._where, self._names), self._parts))
        return (
            same
            and len(self.blocks) == self._count
            and all(map(operator.eq, map(Tensor.data_ptr, self._tensors), self._addresses))
        )


def _layer(block: Any) -> Layer:
    """Raises: ShoestringError, saying what it is that the decoder does not know."""
    mixer, channels = block.token_mixer, block.channel_mixer
    if type(mixer) is not Attention or type(channels) is not SwiGLU:
        raise ShoestringError(
            f"{type(mixer).__name__} and {type(channels).__name__}, where the native decoder knows Attention and SwiGLU"
        )
    if type(block.residual) is not PreNorm:
        raise ShoestringError(f"{type(block.residual).__name__}, where the native decoder knows PreNorm")
    if not mixer.causal:
        raise ShoestringError("attention that sees both ways, where the native decoder knows what comes before")
    if mixer.across is not None:
        raise ShoestringError("attention over rows that are divided, where the native decoder knows whole ones")
    norms = [_norm(norm) for norm in (block.token_norm, mixer.query_norm, mixer.key_norm, block.channel_norm)]
    linears = (mixer.qkv, mixer.output, channels.gate_up, channels.output)
    return Layer(*norms, *(_matrix(linear) for linear in linears))  # type: ignore[arg-type]


def _norm(norm: Any) -> Norm:
    if type(norm) is nn.Identity:
        return Norm(None, 0.0)
    if type(norm) is not RMSNorm:
        raise ShoestringError(f"{type(norm).__name__}, where the native decoder knows RMSNorm")
    return Norm(norm.weight.detach(), norm.epsilon)


def _matrix(linear: Any) -> KernelMatrix:
    if isinstance(linear, NativeMatrix):
        return linear.native_matrix()
    if type(linear) is not nn.Linear or linear.weight.dtype not in DENSE:
        raise ShoestringError(f"a matrix of {type(linear).__name__} that the native decoder does not know")
    if type(linear.weight) is not nn.Parameter:
        raise ShoestringError("a matrix that is divided among processes, of which the native decoder sees a part")
    weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    return KernelMatrix(weight, len(weight), weight.shape[1], DENSE[weight.dtype], bias=bias)
