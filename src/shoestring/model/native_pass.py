"""The blocks of a Transformer in one native call, where the library knows their parts and nobody listens to what they say."""

import operator
from collections.abc import Collection, Sequence
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
)
from shoestring.kernels.recurrent import NO_NORM, NativeRecurrence, Norm, Recurrence
from shoestring.model.attention import Attention
from shoestring.model.cache import ContiguousCache
from shoestring.model.joined_cache import JoinedCache
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
        if not x.is_cpu or not x.numel() or not self.ready(rows * length, x.dtype):
            return None
        joined = isinstance(cache, JoinedCache)
        if self.decoder.rules and (cache is None or (length > FEW and not joined)):  # many are computed in chunks
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

    def ready(self, tokens: int, dtype: torch.dtype) -> bool:
        """Whether a pass of so many tokens, of this type, can be read natively now."""
        if dtype not in FLOATS or kernel_in_use() == TORCH:
            return False
        if self.decoder.dense and not worth(tokens, self.decoder.dense):
            return False
        return not heard() and not any(self._hooks) and self._unchanged()

    def joined(self, caches: Sequence[Cache], new: Sequence[int], dtype: torch.dtype) -> JoinedCache | None:
        """As `contract.model.Joins.joined`, in a model of this type."""
        if max(new) > FEW or not self.ready(sum(new), dtype):
            return None
        plain = [cache for cache in caches if isinstance(cache, ContiguousCache) and cache.rows == 1]
        if len(plain) < len(caches) or any(cache.native_layers is None for cache in plain):
            return None
        return JoinedCache(plain)

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
    # of its own class: one that inherits it may compute something else
    knows = isinstance(mixer, NativeRecurrence) and "native_recurrence" in vars(type(mixer))
    rule: Recurrence | None = mixer.native_recurrence() if knows else None
    if (rule is None and type(mixer) is not Attention) or type(channels) is not SwiGLU:
        raise ShoestringError(
            f"{type(mixer).__name__} and {type(channels).__name__}, where the native decoder knows Attention and SwiGLU"
        )
    if type(block.residual) is not PreNorm:
        raise ShoestringError(f"{type(block.residual).__name__}, where the native decoder knows PreNorm")
    if isinstance(mixer, Attention):
        if not mixer.causal:
            raise ShoestringError("attention that sees both ways, where the native decoder knows what comes before")
        if mixer.across is not None:
            raise ShoestringError("attention over rows that are divided, where the native decoder knows whole ones")
        query_norm, key_norm, reads = _norm(mixer.query_norm), _norm(mixer.key_norm), mixer.qkv
    else:
        query_norm, key_norm, reads = NO_NORM, NO_NORM, getattr(mixer, mixer.reads)
    norms = _norm(block.token_norm), query_norm, key_norm, _norm(block.channel_norm)
    linears = (reads, mixer.output, channels.gate_up, channels.output)
    return Layer(*norms, *(_matrix(linear) for linear in linears), recurrence=rule)  # type: ignore[arg-type, misc]


def _norm(norm: Any) -> Norm:
    if type(norm) is nn.Identity:
        return NO_NORM
    if type(norm) is not RMSNorm:
        raise ShoestringError(f"{type(norm).__name__}, where the native decoder knows RMSNorm")
    return norm.native()


def _matrix(linear: Any) -> KernelMatrix:
    if isinstance(linear, NativeMatrix):
        return linear.native_matrix()
    if type(linear) is not nn.Linear or linear.weight.dtype not in DENSE:
        raise ShoestringError(f"a matrix of {type(linear).__name__} that the native decoder does not know")
    if type(linear.weight) is not nn.Parameter:
        raise ShoestringError("a matrix that is divided among processes, of which the native decoder sees a part")
    weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    return KernelMatrix(weight, len(weight), weight.shape[1], DENSE[weight.dtype], bias=bias)
