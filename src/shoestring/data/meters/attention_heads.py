"""How alike the heads of attention are, and how unlike in sharpness: signs of memorising, grokking and collapse."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel
from shoestring.data.selection import row_losses
from shoestring.errors import UsageError
from shoestring.method import Fraction, NonNegative, Positive, method

Regime = Literal["learning", "memorising", "grokking", "general", "collapse"]


class AttentionReading(NamedTuple):
    """What a look shows.

    loss: mean over the rows, nats.
    similarity: mean cosine of the attention of two heads of a layer, in [0, 1]: 1 where all look alike.
    deviation: of the heads' mean entropies, nats: 0 where all are equally sharp.
    spent: what looking took.
    """

    loss: float
    similarity: float
    deviation: float
    spent: Charge


@method(
    "data",
    kind="meter",
    name="attention_heads",
    paper="Weight Decay Regimes in Grokking Transformers: Cheap Online Diagnostics, arXiv:2605.20441",
    claim="two figures of attention alone track memorisation, generalisation and collapse, of small transformers on modular "
    "arithmetic",
    cost="a forward pass over the held rows a look, whose attention is worked out twice; told with it",
)
class AttentionMeter:
    """Cosine similarity between heads, and the standard deviation of their entropies.

        similarity = mean over layers, texts and pairs of heads of <A_i, A_j> / (|A_i| |A_j|),   A_i [T, T] a head's attention, flat
        H_i = mean over texts and places t > 1 of -sum_s A_i[t, s] ln A_i[t, s],   deviation = std of H_i over all heads

    The first place attends to itself alone, whatever the head, and has no part in an entropy. The abstract names the two figures;
    how they are averaged is worked out here, as the paper's text could not be read.

    meter = AttentionMeter(batch.split(8)); reading = meter.look(model), every now and then in a loop of your own. Attention that is
    not torch's scaled_dot_product_attention cannot be seen.

    parts: rows to look at, the same each time, in micro-batches.
    """

    def __init__(self, parts: Sequence[Batch]) -> None:
        self.parts = tuple(parts)

    @torch.no_grad()
    def look(self, model: LanguageModel) -> AttentionReading:
        """What the rows show of the model as it is. Raises: UsageError where no attention with several heads is seen."""
        cosines, entropies = list[Tensor](), list[Tensor]()
        losses, spent, weights = list[Tensor](), NOTHING, list[int]()

        def note(attention: Tensor) -> None:
            cosines.append(head_similarity(attention))
            entropies.append(head_entropies(attention))

        for part in self.parts:
            before = len(entropies)
            with _Watch(note):
                found, took = row_losses(model, [part])
            losses.append(found)
            weights += [part.rows] * (len(entropies) - before)
            spent += took
        if not entropies:
            raise UsageError(
                "attention_heads: no attention of several heads was seen: it is for models whose attention is torch's own, with "
                "execution.attention = flash"
            )
        layers = len(entropies) // len(self.parts)
        share = torch.tensor(weights, dtype=torch.float64).view(len(self.parts), layers, 1) / sum(weights) * layers
        heads = (torch.stack(entropies).double().cpu().view(len(self.parts), layers, -1) * share).sum(0)
        alike = (torch.stack(cosines).double().cpu().view(len(self.parts), layers, 1) * share).sum(0).mean()
        return AttentionReading(float(torch.cat(losses).mean()), float(alike), float(heads.std(correction=0)), spent)


def head_similarity(attention: Tensor) -> Tensor:
    """The mean cosine of two heads' attention, [B, H, T, T] of at least two heads, each over all places of a text."""
    flat = F.normalize(attention.flatten(2), dim=-1)
    heads = flat.shape[1]
    return ((flat @ flat.mT).sum((1, 2)) - heads).mean() / (heads * (heads - 1))


def head_entropies(attention: Tensor) -> Tensor:
    """[H]: the mean entropy of each head's attention [B, H, T, T], nats, of all places but the first."""
    return torch.special.entr(attention[:, :, 1:]).sum(-1).mean((0, 2))


@dataclass(frozen=True)
class GrokkingAlarm:
    """Says, look by look, which regime a run is in.

    learned: a training loss, in nats, at or below which the training text counts as learnt.
    gap: held-out less training loss above which that is memorising.
    alike, spread: similarity of heads at or above which, with a deviation at or below which, they have collapsed.
    """

    learned: Positive = 0.1
    gap: NonNegative = 0.5
    alike: Fraction = 0.99
    spread: NonNegative = 0.01

    def regime(self, train: Sequence[float], heldout: Sequence[float], reading: AttentionReading) -> Regime:
        """The regime after these losses, an entry a look: 'grokking' where the held-out loss has begun to fall from its
        highest, after the training text was learnt. Raises: UsageError where there are none, or not as many of each.
        """
        if not train or len(train) != len(heldout):
            raise UsageError(f"{len(train)} training losses and {len(heldout)} held-out ones: give one of each a look")
        if reading.similarity >= self.alike and reading.deviation <= self.spread:
            return "collapse"
        if train[-1] > self.learned:
            return "learning"
        if heldout[-1] - train[-1] <= self.gap:
            return "general"
        since = next(place for place, loss in enumerate(train) if loss <= self.learned)
        return "grokking" if heldout[-1] < max(heldout[since:]) - self.gap else "memorising"


class _Watch(TorchFunctionMode):
    """Works out the attention of each call of scaled_dot_product_attention a second time, in float32."""

    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and args[0].shape[1] > 1:
            self.note(_attention(*args[:2], *args[3:4], **given))
        return func(*args, **given)


def _attention(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """[B, H, T, S]: the shares of attention, as scaled_dot_product_attention has them."""
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(unseen, float("-inf"))
    if attn_mask is not None:
        seen = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if seen else scores + attn_mask
    return scores.softmax(-1).nan_to_num()  # a place that sees nothing
