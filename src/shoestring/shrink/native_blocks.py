"""The blocks of a packed Transformer as the native decoder reads them, where it knows their parts."""

from typing import Any

from torch import nn

from shoestring.kernels.decoder import Decoder, Layer, Matrix, Norm
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.lowbit.packing import layout_named
from shoestring.model.attention import Attention
from shoestring.model.norm import RMSNorm
from shoestring.model.pre_norm import PreNorm
from shoestring.model.swiglu import SwiGLU
from shoestring.model.transformer import Transformer


def native_decoder(model: Transformer) -> Decoder | str:
    """The decoder, or why there is none: a part of the blocks is of another kind than it computes.

    It keeps the tensors that are in the model now: make another where one is replaced.
    """
    layers = []
    for number, block in enumerate(model.blocks):
        made = _layer(block)
        if isinstance(made, str):
            return f"blocks.{number} has {made}"
        layers.append(made)
    config = model.config
    return Decoder(layers, config.width, config.heads, config.key_value_heads, config.head_width, config.hidden)


def _layer(block: Any) -> Layer | str:
    mixer, channels = block.token_mixer, block.channel_mixer
    if type(mixer) is not Attention or type(channels) is not SwiGLU:
        return (
            f"{type(mixer).__name__} and {type(channels).__name__}, where the native decoder knows Attention and SwiGLU"
        )
    if type(block.residual) is not PreNorm:
        return f"{type(block.residual).__name__}, where the native decoder knows PreNorm"
    matrices = []
    for linear in (mixer.qkv, mixer.output, channels.gate_up, channels.output):
        if not isinstance(linear, PackedLinear):
            return "a matrix that is not packed"
        matrices.append(_matrix(linear))
    norms = []
    for norm in (block.token_norm, mixer.query_norm, mixer.key_norm, block.channel_norm):
        if type(norm) not in (RMSNorm, nn.Identity):
            return f"{type(norm).__name__}, where the native decoder knows RMSNorm"
        norms.append(_norm(norm))
    return Layer(*norms, *matrices)  # type: ignore[arg-type]


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight.detach(), norm.epsilon) if isinstance(norm, RMSNorm) else Norm(None, 0.0)


def _matrix(linear: PackedLinear) -> Matrix:
    rows, columns = linear.out_features, linear.in_features
    return Matrix(linear.packed, linear.scales, rows, columns, layout_named(linear.layout).code)
