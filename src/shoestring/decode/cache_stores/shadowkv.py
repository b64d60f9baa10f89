"""Keys of low rank, values elsewhere, and of both only what a token needs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.grouped_attention import grouped_attention
from shoestring.contract.model import LanguageModel
from shoestring.decode.cache_store import Side
from shoestring.decode.cache_stores.mom import OffloadedStore
from shoestring.decode.text_cache import GrowingLayer, TextCache
from shoestring.errors import UsageError
from shoestring.method import Count, Whole, method

Tables = tuple[Tensor, Tensor]
"""cos and sin [S, 1, D] that turned the keys of each position."""


class ShadowLayer(GrowingLayer):
    """The prompt as low-rank keys and values elsewhere, and the tokens after it as they are.

    tables: what turned the keys; None where the model does not say.
    """

    def __init__(self, store: "ShadowKV", tables: Tables | None) -> None:
        super().__init__()
        self.store, self.tables = store, tables
        self.shadow: tuple[Tensor, Tensor] | None = None
        self.landmarks = torch.empty(0)
        self.outliers = torch.empty(0, dtype=torch.int64)
        self.outlier_keys = torch.empty(0)
        self.side: Side | None = None
        self.chunks = 0
        self.scale = 1.0

    @property
    def nbytes(self) -> int:
        own = [*(self.shadow or ()), self.landmarks, self.outliers, self.outlier_keys] if self.shadow else []
        return super().nbytes + sum(one.nbytes for one in own) + (self.side.nbytes if self.side else 0)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`."""
        before = self.held
        self.grow(keys, values)
        assert self.keys is not None
        assert self.values is not None
        if self.shadow is None:
            mask = _seen(before, queries.shape[2], window, queries.device)
            return grouped_attention(queries, self.keys, self.values, mask=mask, scale=scale)
        if window is not None:
            raise UsageError(
                "shadowkv chooses among all tokens of a prompt, and layers of this model see a window of them: take another store"
            )
        self.scale = queries.shape[3] ** -0.5 if scale is None else scale
        found = []
        for place in range(queries.shape[2]):  # each token chooses for itself
            asked, end = queries[:, :, place : place + 1], before + place + 1
            near, far = self._chosen(asked)
            own = torch.cat((near, self.keys[:, :, :end]), 2), torch.cat((far, self.values[:, :, :end]), 2)
            found.append(grouped_attention(asked, *own, scale=scale))
        return torch.cat(found, 2)

    def settle(self) -> None:
        """The prompt is read: hold it in its other form. Tokens that fill no chunk stay as they are."""
        assert self.keys is not None
        assert self.values is not None
        size = self.store.chunk
        self.chunks = self.held // size
        if self.chunks <= self.store.outliers + self.store.chosen // size:
            return  # a token would look at all of it
        end = self.chunks * size
        keys, values = self.keys[0, :, :end], self.values[0, :, :end]
        chunked = keys.float().unflatten(1, (self.chunks, size))  # [Hk, C, c, D]
        means = chunked.mean(2)
        like = F.cosine_similarity(chunked, means[:, :, None], dim=-1).amin(2)  # [Hk, C]
        self.outliers = like.topk(self.store.outliers, largest=False).indices.sort(-1).values
        numbers = torch.arange(len(chunked), device=chunked.device)[:, None]
        self.outlier_keys = chunked[numbers, self.outliers].flatten(1, 2).to(keys.dtype)
        self.landmarks = means.to(keys.dtype)
        plain = self._turned(keys.float(), torch.arange(end), back=True).transpose(0, 1).flatten(1)  # [S, Hk D]
        rank = min(self.store.rank, *plain.shape)
        left, scales, right = torch.linalg.svd(plain, full_matrices=False)
        self.shadow = (left[:, :rank] * scales[:rank]).to(keys.dtype), right[:rank].to(keys.dtype)
        heads, _, width = values.shape
        self.side = Side(OffloadedStore(), end, heads, width, values)
        self.side.write(torch.arange(end), values.transpose(0, 1))
        self.keys, self.values = self.keys[:, :, end:].clone(), self.values[:, :, end:].clone()

    def _chosen(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [1, Hk, n, D] of the chunks that a query looks at most, and of the outliers."""
        assert self.shadow is not None
        assert self.side is not None
        heads, size = self.landmarks.shape[0], self.store.chunk
        grouped = query[0, :, 0].float().unflatten(0, (heads, -1))
        looked = (grouped @ self.landmarks.float().mT * self.scale).softmax(-1).amax(1)  # [Hk, C]
        looked.scatter_(1, self.outliers, -1)  # they are there already
        best = looked.topk(self.store.chosen // size, dim=-1).indices.sort(-1).values
        places = (best[..., None] * size + torch.arange(size, device=best.device)).flatten(1)  # [Hk, n]
        out = (self.outliers[..., None] * size + torch.arange(size, device=best.device)).flatten(1)
        keys, values = list[Tensor](), list[Tensor]()
        for head in range(heads):
            coded = self.shadow[0][places[head]] @ self.shadow[1].unflatten(1, (heads, -1))[:, head]
            keys.append(self._turned(coded.float()[None], places[head])[0].to(query.dtype))
            # the rows of a head among those of all heads at these places
            values.append(self.side.read(torch.cat((places[head], out[head])))[:, head])
        return torch.cat((torch.stack(keys), self.outlier_keys), 1)[None], torch.stack(values)[None]

    def _turned(self, keys: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """Keys [Hk, S, D] turned by their positions, or back."""
        if self.tables is None:
            return keys
        cos, sin = (table[positions, 0].float() for table in self.tables)
        factor = (cos[0, 0] ** 2 + sin[0, 0] ** 2) if back else torch.ones(())
        rolled = keys.roll(keys.shape[-1] // 2, -1)
        return (keys * cos + rolled * (-sin if back else sin)) / factor


def _seen(before: int, new: int, window: int | None, device: torch.device) -> Tensor:
    own, places = torch.arange(before, before + new, device=device)[:, None], torch.arange(before + new, device=device)
    return (places <= own) if window is None else (places <= own) & (places > own - window)


class ShadowCache(TextCache):
    """Layers of low-rank keys."""

    @property
    def elsewhere(self) -> int:  # type: ignore[override]
        """Bytes of values that are not in the memory of the model's device."""
        return sum(layer.side.elsewhere for layer in self.layers if layer.side is not None)

    def allowed(self, prompt: int) -> int:
        return prompt - self.length if self.length < prompt else 1 << 30

    def settle(self, prompt: int) -> None:
        if self.length == prompt:
            for layer in self.layers:
                layer.settle()


@method(
    "decode",
    kind="cache store",
    name="shadowkv",
    paper="ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference, arXiv:2410.21465",
    claim="batches up to 6 times larger and 3.04 times the throughput on an A100, without loss on RULER, LongBench and Needle In A "
    "Haystack",
    cost="a singular value decomposition of each layer's keys once the prompt is read; then each token reads `chosen` places",
)
class ShadowKV:
    """Hold a prompt's keys in low rank and its values elsewhere, and read of both only what a token looks at most.

    K = U S Vᵀ cut to `rank`: [S, Hk D], before positions turn them. A chunk of tokens has its mean key as a landmark; a token
    attends to the chunks whose landmarks it likes best (the softmax of its scores, the largest of the queries that share a head of
    keys), with keys worked out from A = U S and B = Vᵀ; to the chunks of which some key is least like their mean (outliers of each
    head, kept as they are); and to all tokens after the prompt.

    rank: of the keys. chunk: tokens of one. chosen: tokens of the prompt that a token reads. outliers: chunks that are always read.

    Values are in the host's memory, or of a model on the CPU in a mapped file. Keys are turned back by the tables of a native
    model; of a wrapped one they are taken as the cache gets them, and the rank should then be larger. The prompt is read whole,
    and a prompt of which all would be read stays as it is. No prefix is shared. The source also reads the last chunks of the prompt
    always, and holds the values of outliers on the device; layers that see a window of the context are refused.
    """

    def __init__(self, *, rank: Count = 32, chunk: Count = 8, chosen: Count = 256, outliers: Whole = 4) -> None:
        if chosen < chunk:
            raise ValueError(f"shadowkv: chosen = {chosen} tokens are less than a chunk = {chunk}")
        self.rank, self.chunk, self.chosen, self.outliers = rank, chunk, chosen, outliers

    def cache(self, model: LanguageModel, room: int) -> ShadowCache:
        """As `TextStore.cache`."""
        rotary: Any = getattr(model, "rotary", None)
        tables = None if rotary is None else (rotary.cos, rotary.sin)
        return ShadowCache([ShadowLayer(self, tables) for _ in range(model.about.layers)], 1, room)
