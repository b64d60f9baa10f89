"""Module-based batching: attention reads a few rows at a time, feed-forward layers and experts the tokens of all."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Cost
from shoestring.contract.model import LanguageModule, Reading
from shoestring.errors import UsageError
from shoestring.method import Count, method
from shoestring.model.block import Block
from shoestring.model.pre_norm import PreNorm
from shoestring.model.transformer import Transformer


class Profile(NamedTuple):
    """What was measured of a layer. read: seconds to fetch its experts. attention, experts: seconds a token. held: bytes of a token
    between modules, its cache included."""

    read: float
    attention: float
    experts: float
    held: int


def tokens_to_gather(profile: Profile, memory: float) -> int:
    """The fewest tokens whose computation takes as long as fetching the experts, ceil(read / (attention + experts)), or as many as
    the memory holds, in bytes. Raises: UsageError where it holds none."""
    room = int(memory // profile.held)
    if room < 1:
        raise UsageError(f"{memory:.0f} bytes hold no token, of which each takes {profile.held}")
    return min(room, max(1, math.ceil(profile.read / (profile.attention + profile.experts))))


@method(
    "model",
    kind="offline batching",
    name="moe_gen",
    paper="MoE-Gen: High-Throughput MoE Inference on a Single GPU with Module-Based Batching, arXiv:2503.09716",
    claim="8 to 31 times the throughput of model-based batching (FlexGen, MoE-Lightning, DeepSpeed) when experts are offloaded",
    cost="the hidden states and caches of all rows at a time; the same operations as without",
)
class ModuleBatches:
    """All rows go through a model layer by layer: its attention in batches of `rows`, its channel mixer over the tokens of all.

    Tairan Xu et al., 2025, arXiv:2503.09716.

    So experts that lie elsewhere (`decode.expert_store`) are fetched once for all rows, and not once a batch; and attention, whose
    memory grows with its batch, stays small. Between modules the hidden states lie in the host's memory. `tokens_to_gather` says
    how many tokens make up for the fetching, of a profile.

    Different from the paper: caches stay on the model's device; fetching overlaps with computation as the store does it. For native
    models of sequential residuals, without spans, and one kind of positions.

    rows: that attention reads at a time. tokens: that a channel mixer takes at a time, at most.
    """

    def __init__(self, *, rows: Count = 8, tokens: Count = 65536) -> None:
        self.rows, self.tokens = rows, tokens

    @torch.no_grad()
    def read(self, model: LanguageModule, inputs: Sequence[Inputs], caches: Sequence[Cache | None]) -> list[Reading]:
        """As `model.read` of each of the inputs with its cache. Raises: UsageError for a model that is none of those above."""
        native = self._checked(model)
        coming = [None if cache is None else cache.begin(one) for one, cache in zip(inputs, caches, strict=True)]
        for one, own in zip(inputs, coming, strict=True):
            if (end := one.length if own is None else own.end) > native.config.context:
                raise UsageError(f"{end} tokens do not fit in a context of {native.config.context}")
            if one.mask is not None or one.documents is not None:
                raise UsageError("module-based batching reads texts, without masks and packed documents")
        tables = [native.rotations(one, own) for one, own in zip(inputs, coming, strict=True)]
        states = [(native.embedded(one.values.to(native.device)) * native.config.input_scale).cpu() for one in inputs]
        for number, block in enumerate(native.blocks):
            assert isinstance(block, Block)
            for place, cache in enumerate(caches):
                x = states[place].to(native.device)
                mixed = block.token_mixer(block.token_norm(x), *tables[place], None, cache and cache.layers[number])
                states[place] = (x + _first(mixed)).cpu()
            flat = torch.cat([x.flatten(0, 1) for x in states])
            parts = [self._channels(block, part.to(native.device)).cpu() for part in flat.split(self.tokens)]
            lengths = [x.shape[0] * x.shape[1] for x in states]
            states = [x.view(old.shape) for x, old in zip(torch.cat(parts).split(lengths), states, strict=True)]
        found = []
        for one, own, cache, x in zip(inputs, coming, caches, states, strict=True):
            if cache is not None:
                cache.advance()
            hidden = native.norm(x.to(native.device)) * native.config.output_scale
            found.append(Reading(hidden, native.reading_head(), native.costs.of_pass(one, own)))
        return found

    @torch.no_grad()
    def write(
        self,
        model: LanguageModule,
        prompts: Sequence[Sequence[int]],
        count: int,
        *,
        ends: Collection[int] = (),
        choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
    ) -> tuple[list[list[int]], Cost]:
        """(what is written after each of the prompts, what the passes cost, their heads not among it).

        prompts: token ids, at least one each. count: tokens of an answer, at most. ends: tokens that end one, and are its last.
        choose: the next tokens [rows] of logits [rows, V]; the likeliest.
        """
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        groups = [order[at : at + self.rows] for at in range(0, len(order), self.rows)]
        answers: list[list[int]] = [[] for _ in prompts]
        caches, coming, total = list[Cache](), list[Inputs](), Cost()
        for group in groups:
            longest = len(prompts[group[-1]])
            caches.append(model.new_cache(len(group), longest + count))
            values = torch.zeros(len(group), longest, dtype=torch.int64)
            for row, number in enumerate(group):
                values[row, : len(prompts[number])] = torch.tensor(prompts[number])
            coming.append(Inputs(values, lengths=torch.tensor([len(prompts[number]) for number in group])))
        for _ in range(count):
            readings = self.read(model, coming, caches)
            following = []
            for group, one, reading in zip(groups, coming, readings, strict=True):
                total += reading.cost
                assert one.lengths is not None
                last = reading.hidden[torch.arange(len(group)), (one.lengths - 1).clamp_min(0)]
                chosen = choose(reading.head.logits(last)).cpu()
                goes_on = one.lengths > 0
                for row, number in enumerate(group):
                    if goes_on[row]:
                        answers[number].append(int(chosen[row]))
                        goes_on[row] = int(chosen[row]) not in ends
                following.append(Inputs(chosen[:, None], lengths=goes_on.long()))
            kept = [at for at, one in enumerate(following) if one.lengths is not None and bool(one.lengths.any())]
            groups, caches, coming = ([every[at] for at in kept] for every in (groups, caches, following))  # type: ignore[assignment]
            if not kept:
                break
        return answers, total

    @staticmethod
    def _channels(block: Block, x: Tensor) -> Tensor:
        """x [N, width] after the channel mixer."""
        return x + _first(block.channel_mixer(block.channel_norm(x[None])))[0]

    @staticmethod
    def _checked(model: LanguageModule) -> Transformer:
        if not isinstance(model, Transformer):
            raise UsageError(
                "module-based batching is for native models: a wrapped one goes through its layers by itself"
            )
        for number, block in enumerate(model.blocks):
            if not isinstance(block, Block) or type(block.residual) is not PreNorm or block.early:
                raise UsageError(
                    f"module-based batching: layer {number} does not mix its tokens first and then its channels"
                )
        if model.config.span or hasattr(model, "more_rotaries"):
            raise UsageError("module-based batching is for models without spans, and with one kind of positions")
        return model


def _first(found: Any) -> Tensor:
    """What a part says, its notes left out."""
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output
