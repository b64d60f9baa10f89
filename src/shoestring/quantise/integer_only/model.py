"""A transformer of integers alone: token ids in, integer logits out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache, Pass
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import About, Depth, Reading, tapping
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.recurrent_cache import TokenMemory
from shoestring.quantise.integer_only.arithmetic import STREAM_BITS, saturated
from shoestring.quantise.integer_only.norm import IntegerOnlyNorm
from shoestring.quantise.integer_only.part import PassPlaces
from shoestring.quantise.integer_only.scales import FixedPointScales
from shoestring.quantise.integer_only.supported import counterparts, norm_is_centred, require_supported, rotates
from shoestring.quantise.integer_only.tables import IntegerOnlyEmbedding, IntegerOnlyHead, IntegerOnlyTable


class IntegerOnlyBlock(nn.Module):
    """The counterpart of a `Block` with `PreNorm`. The stream has 23 bits, and one scale in all blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        tokens, channels = counterparts(config)
        self.token_norm = IntegerOnlyNorm(config.width, norm_is_centred(config))
        self.token_mixer = tokens(config)
        self.channel_norm = IntegerOnlyNorm(config.width, norm_is_centred(config))
        self.channel_mixer = channels(config)

    def forward(self, x: Tensor, places: PassPlaces, kept: TokenMemory) -> Tensor:
        """int32 [B, T, width] -> int32 [B, T, width]."""
        x = _added(x, self.token_mixer(self.token_norm(x), places, kept))
        return _added(x, self.channel_mixer(self.channel_norm(x)))

    def flops(self, shape: Shape) -> int:
        found: int = self.token_mixer.flops(shape) + self.channel_mixer.flops(shape)
        return found


def _added(stream: Tensor, more: Tensor) -> Tensor:
    return saturated(more.add_(stream), STREAM_BITS)


class IntegerOnlyTransformer(nn.Module):
    """The counterpart of a `Transformer`, a `LanguageModel`: between ids and logits every tensor is of integers.

    Weights are int8 with a scale a row. Matrices read int8 and add up in int32; a fixed-point multiplier and a shift make what
    comes out of them narrower. What is kept between tokens is int8. All scales are fixed, so that a token has the same integers,
    bit for bit, whether the text before it was read with it or before. `Reading.hidden` is int8.

    Features that a matrix reads are divided by factors of their own, which its columns take up, after SmoothQuant (Xiao et al.,
    2022, arXiv:2211.10438).

    Kim et al. (2021), I-BERT, arXiv:2101.01321, for exponential and root; Jacob et al. (2018), arXiv:1712.05877, for scales; Bravin
    et al. (2025), EmbBERT-Q, arXiv:2502.10001, for tiny models with weights and activations in 8 bits.

    Different from the papers: it decodes, with a cache. Between matrices numbers are wider than 8 bits: the residual stream has 23,
    gates and queries before they are turned have 16, scores 32. Weights are rounded after training. SiLU and GELU are tables
    (`curve.py`), not polynomials.

    config: of the model that it was made of. Raises: UsageError where a part has no counterpart.
    """

    cos: Tensor | None
    sin: Tensor | None
    head_shift: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        require_supported(config)
        self.config, self.logits_scale = config, 1.0
        inside = None if config.embedding is None else int(config.embedding.options.get("rank", 16))
        self.embedding = IntegerOnlyEmbedding(config.vocabulary, config.width, inside)
        self.blocks = nn.ModuleList(IntegerOnlyBlock(config.layer(number)) for number in range(config.layers))
        self.norm = IntegerOnlyNorm(config.width, norm_is_centred(config))
        self.head = None if config.tied else IntegerOnlyTable(config.vocabulary, config.width)
        self.head_scales = FixedPointScales(narrowed=0) if config.tied and inside else FixedPointScales()
        self.register_buffer("head_shift", torch.ones((), dtype=torch.int32))
        turned = next((own for own, _ in config.kinds() if rotates(own)), None)
        for name in ("cos", "sin"):
            table = None if turned is None else torch.zeros(config.context, turned.head_width // 2, dtype=torch.int16)
            self.register_buffer(name, table)

    @property
    def about(self) -> About:
        """Its sizes."""
        config = self.config
        return About(config.vocabulary, config.context, config.width, config.layers)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return self.head_shift.device

    @torch.no_grad()
    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """As `LanguageModel.read`; hidden is int8 [B, T, width]. Rows may have different lengths.

        Raises: UsageError where tokens do not fit, and for a depth, a mask and packed documents.
        """
        if depth is not None or inputs.mask is not None or inputs.documents is not None:
            raise UsageError(
                "an integer-only model reads one text a row through all layers: no depth, mask or documents"
            )
        own = self.new_cache(inputs.rows, inputs.length) if cache is None else cache
        coming = own.begin(inputs)
        assert isinstance(coming, Pass)
        if coming.end > self.config.context:
            raise UsageError(f"{coming.end} tokens do not fit in a context of {self.config.context}")
        places = self._places(inputs, coming)
        with tapping(self, tap) as tapped:
            x = self.embedding(inputs.values)
            for block, kept in zip(self.blocks, own.layers, strict=True):
                x = block(x, places, kept)
            hidden = self.norm(x)
        own.advance()
        cost = self._body(Shape(inputs.rows, inputs.length, coming.longest))
        return Reading(hidden, self.integer_head, cost, {}, tapped)

    def _places(self, inputs: Inputs, coming: Pass) -> PassPlaces:
        if self.cos is None or self.sin is None:
            return PassPlaces(coming, None, None)
        positions = coming.positions if inputs.positions is None else inputs.positions
        positions = positions.clamp_max(self.config.context - 1)
        return PassPlaces(coming, self.cos[positions][:, :, None], self.sin[positions][:, :, None])

    @property
    def integer_head(self) -> IntegerOnlyHead:
        """Makes logits of the hidden states that it reads."""
        own, narrow = self.head, self.embedding.narrow
        tied = own is None
        table = self.embedding.table if own is None else own
        return IntegerOnlyHead(table, narrow if tied else None, self.head_scales, self.head_shift, self.logits_scale)

    def new_cache(self, rows: int, room: int) -> Cache:
        """As `LanguageModel.new_cache`: int8 numbers of each token."""
        sizes = [(rows, room, self._kept(block)) for block in self.blocks]
        return Cache([TokenMemory(torch.zeros(size, dtype=torch.int8)) for size in sizes], rows, room)

    def _kept(self, block: Any) -> int:
        return int(block.token_mixer.kept_width)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its tensors: codes, multipliers, tables of functions and of rotary positions."""
        return sum(one.nbytes for one in self.buffers())

    def cost(self, shape: Shape) -> Cost:
        """As `LanguageModel.cost`. There is no backward pass."""
        return self._body(shape).beside(Cost(self.integer_head.flops(shape.head_places)))

    def _body(self, shape: Shape) -> Cost:
        narrow = 0 if self.embedding.narrow is None else 2 * shape.tokens * self.embedding.narrow.numel()
        flops = narrow + sum(block.flops(shape) for block in self.blocks)  # type: ignore[operator]
        token, weights = sum(map(self._kept, self.blocks)), self.weight_bytes
        held = shape.rows * (shape.past + shape.new) * token
        return Cost(flops, weights + shape.rows * shape.past * token, weights + held)
