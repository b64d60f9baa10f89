"""A decoder-only transformer: embedding, blocks, norm, head."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache, PackedPass, Pass, Thinning
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import About, Depth, Head, Mixer, Reading, causally, tapping
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.anatomy import NativeAnatomy
from shoestring.model.attention_mask import attention_mask
from shoestring.model.block import Block, Place
from shoestring.model.blocks import Blocks
from shoestring.model.cache import ContiguousCache, contiguous_layer
from shoestring.model.config import ModelConfig
from shoestring.model.hidden_token import HiddenToken
from shoestring.model.initialise import initialise
from shoestring.model.layout import span_places
from shoestring.model.narrow_embedding import NarrowedHead, NarrowEmbedding
from shoestring.model.native_head import NativeHead
from shoestring.model.native_pass import NativePass
from shoestring.model.pass_costs import PassCosts
from shoestring.model.rotary_kinds import rotary_key, rotary_kinds, rotary_tables
from shoestring.model.span import CacheSizes, Where, span_of
from shoestring.model.stack import Stack
from shoestring.model.whole_text_cache import WholeTextCache


class Transformer(Blocks):
    """Token ids in, next-token logits out. Attention Is All You Need, arXiv:1706.03762; pre-norm, as Qwen3 and Llama.

    A `LanguageModel`, freshly initialised from torch's global generator. A tied model has no `head`: the embedding is its
    output matrix. config: the complete configuration. Raises: UsageError without a vocabulary.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.vocabulary:
            raise UsageError("the model's vocabulary is not known: set model.vocabulary, or let the tokenizer set it")
        self.config = config
        narrow: NarrowEmbedding | None = None if config.embedding is None else config.embedding.build(config.width)
        self.embedding = nn.Embedding(config.vocabulary, config.width if narrow is None else narrow.inside)
        if narrow is not None:  # a model without one has no such name in its checkpoints
            self.narrow = narrow
        if config.hides:  # a model that does not has no such name in its checkpoints
            self.hidden_token = HiddenToken(config.width)
        blocks = _blocks(config)
        self.blocks = nn.ModuleList(blocks)
        spans = [span_of(item, config) for item in config.span]
        if spans:  # a model without any has no such name in its checkpoints and prints
            self.spans = nn.ModuleList(spans)
        self.norm = config.norm.build(config.width)
        self.head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.make_rotaries()
        outputs = [mixer.output for block in blocks for mixer in (block.token_mixer, block.channel_mixer)]
        initialise(self, self.embedding, self.get_output_embeddings(), outputs)

    def make_rotaries(self) -> None:
        """Make the tables of positions that the layers read, as the configuration has them now."""
        first, *others = (rotary_tables(own) for own in rotary_kinds(self.config))
        self.rotary = first
        if others:
            self.more_rotaries = nn.ModuleList(others)
        elif hasattr(self, "more_rotaries"):
            del self.more_rotaries

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> nn.Embedding | nn.Linear:
        """The module whose `weight` [vocabulary, width] turns hidden states into logits; tied: the embedding."""
        return self.embedding if self.head is None else self.head

    @property
    def about(self) -> About:
        """Its sizes."""
        config = self.config
        sizes = config.vocabulary, config.context, config.width, len(self.blocks)
        return About(*sizes, causal=config.causal, hides=config.hides)

    def anatomy(self) -> NativeAnatomy:
        """Its parts, as surgery sees them."""
        return NativeAnatomy(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states, and of the cache's keys and values."""
        return self.get_output_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids are wanted."""
        return self.get_output_embeddings().weight.device

    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """Read token ids. The hidden states [B, T, width] are normed, and times `output_scale`, so that logits are hidden @
        head.weight.T whoever multiplies them. A cache is for use under `no_grad`.

        tap: names of modules, 'blocks.3' say. depth: with a cache, a layer that is left out stays left out.
        Raises: UsageError when the tokens are more than the context or the cache has room for, for an unknown tap, and for a depth
        that goes through a layer in which the cache lacks tokens, or twice.
        """
        if cache is not None and self._ahead:
            with causally(self):
                return self._read(inputs, cache, tap, depth)
        return self._read(inputs, cache, tap, depth)

    @cached_property
    def _ahead(self) -> bool:
        """Whether a part looks at later tokens while it trains, which it must not with a cache."""
        return any(getattr(module, "looks_ahead", False) for module in self.modules())

    def _read(self, inputs: Inputs, cache: Cache | None, tap: Sequence[str], depth: Depth | None) -> Reading:
        """As `read`."""
        coming = None if cache is None else cache.begin(inputs)
        end = inputs.length if coming is None else coming.end
        if end > self.config.context:
            raise UsageError(f"{end} tokens do not fit in a context of {self.config.context}")
        cos, sin = self.rotations(inputs, coming)
        mask = attention_mask(inputs, self.config.causal) if cache is None else None
        stack, notes = self.stack, dict[str, Tensor]()
        with tapping(self, tap) as tapped:
            x = _scaled(self.embedded(inputs.values), self.config.input_scale)
            if coming is not None and issubclass(type(cache), Thinning):  # as `NativePass.read` asks
                if depth is not None or stack is not None:
                    raise UsageError(
                        "a cache that has tokens leave between layers is read through all layers, which keep keys and values: "
                        "no depth, no running states, no spans"
                    )
                x, cost = self._thinned(x, coming.positions, cache)
            elif stack is not None:
                self._require_stack(stack, inputs, depth)
                read = None if cache is None else self._natively(x, cos, sin, cache)
                if read is None:
                    mask = mask if stack.masked else None
                    more = [self.rotations(inputs, coming, rotary) for rotary in getattr(self, "more_rotaries", ())]
                    documents = inputs.documents if cache is None else None
                    where = Where(((cos, sin), *more), mask, documents, {}, inputs.values)
                    x, notes = stack.read(x, where, None if cache is None else cache.layers)
                else:
                    x = read
                cost = self.costs.of_pass(inputs, coming)
            elif depth is None:
                x = self._through_blocks(x, cos, sin, mask, cache)
                cost = self.costs.of_pass(inputs, coming)
            else:
                x, cost = self._through_some(x, cos, sin, mask, depth, cache, inputs, coming)
            hidden = self.leaving(x)
        if cache is not None:
            cache.advance()
        return Reading(hidden, self.reading_head(), cost, notes, tapped)

    def embedded(self, values: Tensor) -> Tensor:
        """[B, T, width]: the vectors of token ids [B, T]."""
        if not self.config.hides:
            return self._widened(self.embedding(values))
        return self.hidden_token.placed(values, self._widened(self.embedding(values.clamp_min(0))))

    def _widened(self, vectors: Tensor) -> Tensor:
        """Rows of the table, as wide as the stream."""
        found: Tensor = vectors if self.config.embedding is None else self.narrow(vectors)
        return found

    def _require_stack(self, stack: Stack, inputs: Inputs, depth: Depth | None) -> None:
        """Raises: UsageError for what layers that are not plain cannot do."""
        if depth is not None:
            raise UsageError(
                "this model has layers with a running state, a router, a ladder or a span: it takes no depth"
            )
        if inputs.mask is not None and stack.recurrent:
            raise UsageError(
                f"layer {stack.recurrent[0]} keeps a running state and reads tokens in order: it takes no mask"
            )

    def rotations(
        self, inputs: Inputs, coming: Pass | PackedPass | None, rotary: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """The rotary tables of the tokens of a pass. rotary: of which; None: of the first layer."""
        positions, past = inputs.positions, 0
        if coming is not None and positions is None:
            past = coming.longest
            if not coming.uniform:
                positions = coming.positions.clamp_max(self.config.context - 1)
        tables: tuple[Tensor, Tensor] = (rotary or self.rotary)(past, inputs.length, positions)
        return tables

    def _through_blocks(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """x [B, T, width] after all blocks; the rest as `Block.forward` takes it."""
        found = self._natively(x, cos, sin, cache) if mask is None else None
        if found is not None:
            return found
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, None if cache is None else cache.layers[index])
        return x

    def _natively(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor | None:
        """x after all blocks in one native call; None, and nothing is done, where it cannot be."""
        native = self.native
        if isinstance(native, NativePass) and native.blocks is self.blocks:
            return native.read(x, cos, sin, cache)
        return None

    def joined(self, caches: Sequence[Cache], new: Sequence[int]) -> Cache | None:
        """As `contract.model.Joins.joined`: where the native call takes all of them."""
        native = self.native
        if not isinstance(native, NativePass) or native.blocks is not self.blocks or self.device.type != "cpu":
            return None
        return native.joined(caches, new, self.dtype)

    def cost(self, shape: Shape) -> Cost:
        """What a pass of this shape costs, its head and backward pass included."""
        return self.costs.whole(shape)

    @cached_property
    def costs(self) -> PassCosts:
        """What its passes cost, part by part."""
        return PassCosts(self)

    @cached_property
    def stack(self) -> Stack | None:
        """What goes through layers that are not all plain attention or the like; None: each is, and none is wrapped."""
        for block in self.blocks:
            block.look()  # type: ignore[operator]
        kinds = rotary_kinds(self.config)
        plain = all(not (block.recurrent or block.tells or block.early or block.carries) for block in self.blocks)
        if plain and not self.config.span and len(kinds) == 1:
            return None
        tables = [0] * len(self.blocks)
        for own, numbers in self.config.kinds():
            key = rotary_key(own)
            for number in numbers:
                tables[number] = 0 if key is None else [rotary_key(kind) for kind in kinds].index(key)
        wrapped = span_places(self.config.span, self.config.layers)
        spans = list(zip(self.spans, wrapped, strict=True)) if wrapped else []
        return Stack(self.blocks, spans, tables)  # type: ignore[arg-type]

    @cached_property
    def native(self) -> NativePass | str:
        """What reads all blocks in one native call where a pass allows it, or why each goes module by module."""
        config = self.config
        if config.span:
            return "layers of this model are wrapped"
        if hasattr(self, "more_rotaries"):
            return "the layers of this model turn their heads in different ways"
        kinds = config.kinds()
        attending = [own for own, numbers in kinds if not self.blocks[numbers[0]].recurrent] or [config]
        heads = {(own.heads, own.key_value_heads, own.head_width) for own in attending}
        hidden = {own.hidden for own, _ in kinds}
        if len(heads) > 1 or len(hidden) > 1:
            return "the layers of this model have different sizes"
        sizes = config.width, *heads.pop(), hidden.pop()
        try:
            return NativePass(self.blocks, *sizes)
        except ShoestringError as error:
            return str(error)

    def _through_some(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        depth: Depth,
        cache: Cache | None,
        inputs: Inputs,
        coming: Pass | PackedPass | None,
    ) -> tuple[Tensor, Cost]:
        """(x after the blocks that `depth` chooses, what those cost)."""
        cost = Cost()
        for index, block in enumerate(self.blocks):
            times = depth.times(index, x)
            if cache is not None:
                if times > 1:
                    raise UsageError(
                        f"layer {index} cannot be repeated with a cache: it keeps the keys of a token once"
                    )
                cache.through(index) if times else cache.past(index)
            for _ in range(times):
                rule = _Ruled(depth, index)
                x = block(x, cos, sin, mask, None if cache is None else cache.layers[index], None, rule)
                if cache is not None and rule.places is not None:
                    cache.thinned(index, rule.places)
                cost += self.costs.in_block(index, inputs, coming, rule.places)
        return x, cost

    def _thinned(self, x: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Cost]:
        """(x after all blocks, of the tokens that are left; what those cost that each block took in)."""
        cost = Cost()
        for index, block in enumerate(self.blocks):
            x, positions = cache.between(index, x, positions)
            shape = Shape(1, x.shape[1], cache.layers[index].held)
            if shape.new:
                x = block(x, *self.rotary(0, shape.new, positions), None, cache.layers[index])
                cost += self.costs.of_block(index, shape)
            cost += Cost(cache.asked(index))
        return x, cost

    def leaving(self, stream: Tensor) -> Tensor:
        """As `contract.model.Exits.leaving`."""
        return _scaled(self.norm(stream), self.config.output_scale)

    def reading_head(self) -> Head:
        """Makes logits of the hidden states that it reads."""
        table = self.table_head()
        return NarrowedHead(self.narrow, table) if self.narrows_head else table

    def table_head(self) -> Head:
        """Makes logits by the output matrix alone."""
        return NativeHead(self.get_output_embeddings().weight)

    def new_cache(self, rows: int, room: int) -> Cache:
        """An empty cache for `rows` sequences of up to `room` tokens, of the model's type and device; of exactly `room`, where the
        model sees both ways (`WholeTextCache`)."""
        stack = self.stack
        if not self.config.causal:
            if stack is not None:
                raise UsageError("a model that sees both ways has a cache where no layer is wrapped or routes tokens")
            kept = [block.token_mixer.cache_shape() for block in self.blocks]  # type: ignore[union-attr, operator]
            return WholeTextCache(kept, rows, room, self.dtype, self.device)
        if stack is not None:
            whole = room

            def make(block: Block, room: int = whole) -> Any:
                return self._layer_cache(block, rows, room)

            layers = stack.new_caches(make, CacheSizes(rows, room, self.dtype, self.device))
            return ContiguousCache(layers, rows, room, self.dtype, self.device)
        layers = [self._layer_cache(block, rows, room) for block in self.blocks]  # type: ignore[arg-type]
        return ContiguousCache(layers, rows, room, self.dtype, self.device)

    def _layer_cache(self, block: Block, rows: int, room: int) -> Any:
        """The state of one layer, or None."""
        mixer: Any = block.token_mixer
        if block.recurrent:
            return mixer.new_cache(rows, room, self.dtype, self.device)
        if hasattr(mixer, "own_cache"):
            return mixer.own_cache(rows)
        shape = mixer.cache_shape()
        return None if shape is None else contiguous_layer(shape, rows, room, self.dtype, self.device)


class _Ruled:
    """A depth's rule for the channels of one layer, as `Block.forward` takes it.

    places: [B, T] bool, at which the mixer was asked; None: at all.
    """

    def __init__(self, depth: Depth, layer: int) -> None:
        self.depth, self.layer = depth, layer
        self.places: Tensor | None = None

    def __call__(self, x: Tensor, mix: Mixer) -> Tensor:
        added, self.places = self.depth.channels(self.layer, x, mix)
        return added


def _blocks(config: ModelConfig) -> list[Block]:
    """The layers of a model, each of its own kind. Raises: UsageError, with the layer, where one cannot be."""
    found: list[Block] = []
    alone = [config] * config.layers if not config.pattern else [config.layer(n) for n in range(config.layers)]
    for number, own in enumerate(alone):
        try:
            found.append(Block(own, Place(number, config.layers, config.context)))
        except ValueError as error:
            raise UsageError(f"layer {number} cannot be built: {error}") from None
    return found


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor
