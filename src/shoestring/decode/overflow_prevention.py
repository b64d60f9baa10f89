"""A long text in pieces, of which the one that answers best is read alone: for models whose memory has a fixed size."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.errors import UsageError
from shoestring.method import Count, method

log = logging.getLogger(__name__)


class ChunkPiece(NamedTuple):
    """The piece of a text that was chosen.

    prompt: it, between what comes before and the question. number: of the piece. entropies: of each piece, in nats.
    spent: what choosing took.
    """

    prompt: tuple[int, ...]
    number: int
    entropies: tuple[float, ...]
    spent: Charge


@method(
    "decode",
    kind="reading",
    name="overflow_prevention",
    paper="Overflow Prevention Enhances Long-Context Recurrent LLMs, arXiv:2505.07793",
    claim="reading the most relevant piece alone raises LongBench by 14 % with Falcon3-Mamba-Inst-7B and 50 % with "
    "RecurrentGemma-IT-9B",
    cost="each piece is read once with the question, several side by side; then the chosen one again, by who answers",
)
class OverflowPrevention:
    """Read each piece of a long text with the question behind it, and go on from the one after which the model is surest.

        piece = argmin_c H(p(. | before, c, question)),   H(p) = - sum_v p_v log p_v

    chunk: tokens of a piece; the last may be shorter. rows: pieces that are read side by side.

    The source goes on from the state of the chosen piece; here its prompt is given back, for an engine to read. It can also leave
    out pieces after which the model says that it does not know, which needs a prompt for that.
    """

    def __init__(self, *, chunk: Count = 2048, rows: Count = 4) -> None:
        self.chunk, self.rows = chunk, rows

    @torch.inference_mode()
    def choose(
        self, model: LanguageModel, text: Sequence[int], question: Sequence[int], before: Sequence[int] = ()
    ) -> ChunkPiece:
        """The piece of `text` to answer from. question: what stands behind each piece. before: what stands before each.

        Raises: UsageError without a text or a question, and where a piece does not fit in the model's context.
        """
        if not text or not question:
            raise UsageError("a text is read in pieces to answer a question: give both")
        size = len(before) + min(self.chunk, len(text)) + len(question)
        if size > model.about.context:
            raise UsageError(
                f"a piece is {size} tokens with its question, and the context {model.about.context}: set a smaller chunk"
            )
        pieces = [text[start : start + self.chunk] for start in range(0, len(text), self.chunk)]
        prompts = [(*before, *piece, *question) for piece in pieces]
        entropies, spent = list[float](), NOTHING
        for rows in self._together(prompts):
            reading = model.read(Inputs(torch.tensor(rows, device=model.device)))
            logits = reading.head.logits(reading.hidden[:, -1]).float()
            logs = logits.log_softmax(-1)
            entropies += (-(logs.exp() * logs).sum(-1)).tolist()
            flops = reading.cost.flops + reading.head.flops(len(rows))
            spent += Charge(read=len(rows) * len(rows[0]), flops=flops, moved=reading.cost.moved, calls=1)
        number = min(range(len(pieces)), key=entropies.__getitem__)
        log.info("piece %d of %d is read: %.3g nats", number + 1, len(pieces), entropies[number])
        return ChunkPiece(prompts[number], number, tuple(entropies), spent)

    def _together(self, prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """The prompts in groups of one length, in order."""
        whole = [prompt for prompt in prompts if len(prompt) == len(prompts[0])]
        groups = [whole[start : start + self.rows] for start in range(0, len(whole), self.rows)]
        return groups + [[prompt] for prompt in prompts[len(whole) :]]
