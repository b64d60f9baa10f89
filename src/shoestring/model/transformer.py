"""A decoder-only transformer: embedding, blocks, norm, head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.errors import UsageError
from shoestring.model.block import Block
from shoestring.model.cache import KeyValueCache
from shoestring.model.config import ModelConfig
from shoestring.model.initialise import initialise
from shoestring.model.rotary import Rotary


class Transformer(nn.Module):
    """Token ids in, next-token logits out. Attention Is All You Need, arXiv:1706.03762; pre-norm, as Qwen3 and Llama.

    config: the complete configuration. A tied model has no `head`: the embedding is its output matrix.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = config.norm.build(config.width)
        self.head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        self.rotary = rotary_tables(config)
        initialise(self, self.embedding, self.get_output_embeddings())

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> nn.Embedding | nn.Linear:
        """The module whose `weight` [vocabulary, width] turns hidden states into logits; tied: the embedding."""
        return self.embedding if self.head is None else self.head

    @property
    def head_weight(self) -> Tensor:
        """The parameter [vocabulary, width]: logits = hidden @ head_weight.T."""
        return self.get_output_embeddings().weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states, and of the cache's keys and values."""
        return self.head_weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids are wanted."""
        return self.head_weight.device

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., vocabulary] from final hidden states [..., width]."""
        return F.linear(hidden, self.head_weight)

    def hidden(
        self,
        inputs: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The final hidden states [B, T, width] of token ids `inputs` [B, T]: normed, and times `output_scale`, so that
        logits are hidden @ head_weight.T whoever multiplies them.

        positions: [B, T], each below the context; None = counted from the start of the row, or of the cache.
        documents: [B, T], a number for each document packed in a row; a token sees only its own. cache: from
        `new_cache`; the tokens are read as following those it holds, and are added to it (use it under `no_grad`).

        Raises: UsageError when the tokens are more than the context or the cache has room for.
        """
        length, past = inputs.shape[1], 0 if cache is None else cache.length
        room = self.config.context if cache is None else min(self.config.context, cache.capacity)
        if past + length > room:
            raise UsageError(f"{past + length} tokens do not fit in a context of {room}")
        if cache is not None and documents is not None:
            raise UsageError("packed documents cannot be decoded from a cache: give one sequence a row")
        cos, sin = self.rotary(past, length, positions)
        mask = _mask(length, past, documents, inputs.device)
        x = _scaled(self.embedding(inputs), self.config.input_scale)
        x = self._through_blocks(x, cos, sin, mask, cache)
        if cache is not None:
            cache.advance(length)
        return _scaled(self.norm(x), self.config.output_scale)

    def _through_blocks(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """x [B, T, width] after all blocks; the rest as `Block.forward` takes it."""
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, None if cache is None else cache.layer(index, x.shape[1]))
        return x

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The logits [B, T, vocabulary] of the token after each; the arguments are those of `hidden`."""
        return self.logits(self.hidden(inputs, positions, documents, cache))

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """An empty cache for `batch` sequences of up to `length` tokens, of the model's type and device."""
        config = self.config
        shape = (config.layers, batch, config.key_value_heads, length, config.head_width)
        return KeyValueCache(shape, self.dtype, self.device)

    def flops(
        self, batch: int, length: int, backward: bool = True, *, past: int = 0, outputs: int | None = None
    ) -> int:
        """Operations of `forward` on [batch, length] tokens, with its backward pass if asked.

        past: tokens in the cache before them. outputs: at how many positions of a row the head is applied; None = all.
        The convention is in `model.flops`.
        """
        outputs = length if outputs is None else outputs
        head = (3 if backward else 1) * 2 * batch * outputs * self.config.width * self.config.vocabulary
        # the blocks are alike
        return head + self.config.layers * self.blocks[0].flops(batch, length, backward, past)  # type: ignore[operator]


def rotary_tables(config: ModelConfig) -> Rotary:
    """The tables of a model's positions: no weights, and so in no checkpoint."""
    # a token mixer without rotary positions takes no such option, and ignores the tables
    return Rotary(config.head_width, config.context, config.token_mixer.options.get("rope_theta", 10000.0))


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _mask(length: int, past: int, documents: Tensor | None, device: torch.device) -> Tensor | None:
    """What `Attention.forward` takes: None wherever plain causal attention does, as its kernel is the fastest."""
    if documents is not None:
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]
    if past and length > 1:
        return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)
    return None
