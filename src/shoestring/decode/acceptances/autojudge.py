"""Drafts stay where a classifier holds that the difference does not matter."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.decode.acceptance import Question
from shoestring.decode.made_files import expect, read_made, write_made
from shoestring.errors import UsageError
from shoestring.method import Fraction, method

NAME = "autojudge"


@method(
    "decode",
    kind="acceptance",
    name=NAME,
    paper="AutoJudge: Judge Decoding Without Manual Annotation, arXiv:2504.20039",
    claim="1.5x more accepted tokens a pass at under 1 % loss of accuracy on GSM8K (Llama 3.2 1B drafts for Llama 3.1 8B)",
    cost="two dot products a mismatch; made by `mine` and `fit`, an answer of the model a mismatch",
)
class AutoJudge:
    """A drafted token that the model would not choose stays where a logistic regression gives its importance below a threshold.

    p(important) = sigmoid(w . (x - m) / s + b), x = [h before the token, h after it], of the model's last hidden states. The paper
    adds those of the draft model, which an engine does not see.

    Lossy: `AnswerSpent.changed` counts the tokens that stayed though the model chose another.

    place: a file that `save` wrote.
    threshold: the least probability at which a mismatch counts as important; None: that of the file. 0 keeps what is exact.
    """

    exact = False

    def __init__(self, place: Path, *, threshold: Fraction | None = None) -> None:
        tensors, values = read_made(place, NAME)
        expect(place, tensors, {"weight": (-1,), "bias": ()})
        self.weight, self.bias = tensors["weight"].double(), tensors["bias"].double()
        self.threshold = float(values.get("threshold", 0.0)) if threshold is None else threshold

    def accepts(self, question: Question) -> bool:
        """As `Acceptance.accepts`. Raises: UsageError where the hidden states have another width."""
        if question.drafted == question.chosen:
            return True
        features = features_of(question.hidden, question.after)
        if features.shape != self.weight.shape:
            raise UsageError(
                f"autojudge was trained for hidden states of {len(self.weight) // 2} features, and this model has "
                f"{len(features) // 2}: train it with this model"
            )
        return float(torch.sigmoid(features @ self.weight + self.bias)) < self.threshold


def features_of(before: Tensor, after: Tensor) -> Tensor:
    """float64 [2 width], on the CPU, of hidden states [width]."""
    return torch.cat([before, after]).double().cpu()


@dataclass(frozen=True)
class Mismatch:
    """A place where the draft model would write another token. features: [2 width]. important: whether the answer was wrong with
    the draft model's token."""

    features: Tensor
    important: bool


def mine(
    write: Callable[[tuple[int, ...]], tuple[Sequence[int], Charge]],
    target: LanguageModel,
    draft: LanguageModel,
    prompt: Sequence[int],
    check: Callable[[Sequence[int]], bool],
) -> tuple[list[Mismatch], Charge]:
    """The mismatches of one text, by the semi-greedy search: (what was found, what it took).

    From the first mismatch on, the draft model's token is put in, and the model writes on. Where the answer is still right, the
    token does not matter and stays in the text from which the search goes on; else it is important, and the model's own stays. A
    prompt that the model answers wrong teaches nothing.

    write: the model's greedy answer to a prompt (tokens), and what it took.
    check: whether an answer is right.
    """
    prompt, charge = tuple(prompt), NOTHING

    def answered(begun: Sequence[int]) -> list[int]:
        nonlocal charge
        tokens, took = write((*prompt, *begun))
        charge += took
        return [*begun, *tokens]

    def read(model: LanguageModel, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        nonlocal charge
        with torch.inference_mode():
            reading = model.read(Inputs(torch.tensor([tokens], device=model.device)))
            logits = reading.logits()[0]
        flops = reading.cost.flops + reading.head.flops(len(tokens))
        charge += Charge(flops=flops, moved=reading.cost.moved, read=len(tokens), calls=1)
        return reading.hidden[0], logits

    answer, found, place = answered(()), list[Mismatch](), 0
    if not check(answer):
        return [], charge
    while True:
        choices = read(draft, (*prompt, *answer))[1].argmax(-1).tolist()[len(prompt) - 1 :]
        place = next((at for at in range(place, len(answer)) if choices[at] != answer[at]), len(answer))
        if place == len(answer):
            return found, charge
        begun = [*answer[:place], choices[place]]
        hidden = read(target, (*prompt, *begun))[0]
        other = answered(begun)
        right = check(other)
        found.append(Mismatch(features_of(hidden[-2], hidden[-1]), not right))
        if right:
            answer = other
        place += 1


@dataclass(frozen=True)
class MismatchJudge:
    """A logistic regression of x [2 width]. recall, kept: shares of important mismatches that it finds, and of the others that it
    lets stay, on mismatches that it was not fitted to."""

    weight: Tensor
    bias: Tensor
    threshold: float
    recall: float
    kept: float

    def save(self, path: Path) -> None:
        """Write what `AutoJudge` reads."""
        tensors = {"weight": self.weight, "bias": self.bias}
        write_made(path, NAME, tensors, threshold=self.threshold, recall=self.recall, kept=self.kept)


def fit(
    mismatches: Iterable[Mismatch], *, recall: float = 0.9, decay: float = 1e-2, held_out: float = 0.25
) -> MismatchJudge:
    """A judge of these mismatches. Every fourth (`held_out`) is left out, and sets the threshold at which the share `recall` of the
    important ones is found. decay: of the squared weights. Raises: UsageError where one of both kinds is missing."""
    all_ = list(mismatches)
    every = max(2, round(1 / held_out))
    if len({(at % every == 0, each.important) for at, each in enumerate(all_)}) < 4:
        raise UsageError(f"{len(all_)} mismatches are too few: both kinds are needed to fit to, and to judge by")
    x = torch.stack([each.features for each in all_])
    y = torch.tensor([each.important for each in all_], dtype=torch.float64)
    aside = torch.arange(len(all_)) % every == 0
    mean, scale = x[~aside].mean(0), x[~aside].std(0).clamp_min(1e-6)
    normed = (x - mean) / scale
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        scores = normed[~aside] @ parameters[:-1] + parameters[-1]
        value = F.binary_cross_entropy_with_logits(scores, y[~aside]) + decay * parameters[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    fitted = parameters.detach()
    weight = fitted[:-1] / scale
    bias = fitted[-1] - weight @ mean
    chances = torch.sigmoid(x[aside] @ weight + bias)
    important = chances[y[aside] == 1].sort(descending=True).values
    # at or above the threshold a mismatch counts as important
    threshold = float(important[min(len(important), max(1, -int(-recall * len(important) // 1))) - 1])
    kept = float((chances[y[aside] == 0] < threshold).double().mean())
    return MismatchJudge(weight, bias, threshold, float((important >= threshold).double().mean()), kept)
