"""Set-based prompting: parts of a prompt whose order the model cannot know, so that its answer does not depend on it."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.model import LanguageModel, Reading, require_causal
from shoestring.decode.draws import draw
from shoestring.decode.request import Answer, AnswerSpent, Stop
from shoestring.decode.sampling import Sampling, choose
from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "decode",
    kind="prompt",
    name="set_prompt",
    paper="Set-Based Prompting: Provably Solving the Language Model Order Dependency Problem, arXiv:2406.06581",
    claim="the answer does not depend on the order of the parts, for any transformer, without training; accuracy mostly stays "
    "within what other orders give",
    cost="that of the prompt; a mask, so that fast causal kernels are not used for it",
)
@dataclass(frozen=True)
class SetPrompt:
    """A prompt of tokens, in which parts stand side by side.

    Reid McIlroy-Young et al., 2024, arXiv:2406.06581.

    The tokens of every part of a set have positions from where the set begins, and what follows it goes on after the longest part.
    A token sees those before it in the prompt, but none of another part of its set. So a part of the same tokens has the same keys
    and values wherever it stands in the set, and what follows sees the same set of them: sums of floating-point numbers in another
    order are all that can differ.

    before, after: tokens around the set; at least one after it. parts: of the set, at least one, none of them empty.

    A prompt has one set here, where the paper allows several. The parts' keys and values are not kept to be used again.
    """

    before: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(self.parts) or not self.after:
            raise UsageError(
                "a set has parts of a token or more each, and a token or more after it, which the answer follows"
            )

    @property
    def tokens(self) -> list[int]:
        """All tokens, as they stand."""
        return [*self.before, *(token for part in self.parts for token in part), *self.after]

    @property
    def end(self) -> int:
        """The position of what follows the prompt."""
        return len(self.before) + max(map(len, self.parts)) + len(self.after)

    def inputs(self, device: torch.device | str = "cpu") -> Inputs:
        """What a model reads: tokens, positions and mask, of one row."""
        start, longest = len(self.before), max(map(len, self.parts))
        positions = [*range(start)]
        owners = [-1] * start
        for number, part in enumerate(self.parts):
            positions += range(start, start + len(part))
            owners += [number] * len(part)
        positions += range(start + longest, self.end)
        owner = torch.tensor([*owners, *[-1] * len(self.after)])
        alone = (owner[:, None] >= 0) & (owner >= 0) & (owner[:, None] != owner)
        mask = torch.ones(len(owner), len(owner), dtype=torch.bool).tril() & ~alone
        return Inputs(torch.tensor([self.tokens]), torch.tensor([positions]), mask=mask[None]).to(device)


@torch.no_grad()
def answer_set(
    model: LanguageModel,
    prompt: SetPrompt,
    sampling: Sampling,
    *,
    max_new_tokens: int = 256,
    ends: Collection[int] = (),
    number: int = 1,
    sample: int = 0,
) -> Answer:
    """What a model writes after such a prompt, token by token.

    number: of the request. sample: which of its answers.
    Raises: UsageError where the prompt fills the context, for penalties, and for a model that takes no mask or positions.
    """
    require_causal(model, "an answer to a set")
    began = time.perf_counter()
    if sampling.changes_logits:
        raise UsageError("penalties and bias go by the order of a prompt: leave them out")
    tokens = prompt.tokens
    room = min(model.about.context, len(tokens) + max_new_tokens)
    if room <= len(tokens):
        raise UsageError(f"the prompt has {len(tokens)} tokens, and this model reads {model.about.context}: shorten it")
    cache = model.new_cache(1, room)
    reading, spent = _read(model, prompt.inputs(model.device), cache)
    first: float | None = None
    written: list[int] = []
    stop = Stop.LENGTH if room == len(tokens) + max_new_tokens else Stop.CONTEXT
    while True:
        logits = reading.head.logits(reading.hidden[0, -1]).float().cpu()
        token = choose(logits, sampling, draw(sampling.seed, sample, len(tokens) + len(written)))
        first = time.perf_counter() - began if first is None else first
        if token in ends:
            stop = Stop.END
            break
        written.append(token)
        if len(tokens) + len(written) == room:
            break
        place = torch.tensor([[prompt.end + len(written) - 1]], device=model.device)
        reading, more = _read(model, Inputs(torch.tensor([[token]], device=model.device), place), cache)
        spent += more
    charge = spent + Charge(read=len(tokens), written=len(written))
    seconds = time.perf_counter() - began
    return Answer(number, sample, tuple(written), stop, AnswerSpent(charge, {"decode": seconds}, first=first, unread=1))


def _read(model: LanguageModel, inputs: Inputs, cache: Cache) -> tuple[Reading, Charge]:
    reading = model.read(inputs, cache)
    return reading, Charge(flops=reading.cost.flops + reading.head.flops(1), moved=reading.cost.moved, calls=1)


def order_gap(model: LanguageModel, prompt: SetPrompt, orders: Sequence[Sequence[int]]) -> float:
    """How far the model's next-token log-probabilities are apart, at most, when the parts stand in these orders."""
    found: list[Tensor] = []
    for order in orders:
        turned = SetPrompt(prompt.before, tuple(prompt.parts[place] for place in order), prompt.after)
        with torch.no_grad():
            reading = model.read(turned.inputs(model.device))
            found.append(reading.head.logits(reading.hidden[0, -1]).double().log_softmax(-1))
    return max(float((one - found[0]).abs().max()) for one in found)
