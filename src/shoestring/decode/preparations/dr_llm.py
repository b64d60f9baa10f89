"""Routers of layers, trained on what a tree search finds."""

from collections.abc import Sequence

import torch

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.decode.layer_routers import NAME, FixedDepth, search, train_routers
from shoestring.decode.preparation import Given, Prepared, parted, pieces
from shoestring.errors import UsageError
from shoestring.method import Count, NonNegative, Positive, Seed, method

Ids = tuple[int, ...]


@method(
    "decode",
    kind="preparation",
    name=NAME,
    paper="Dr.LLM: Dynamic Layer Routing in LLMs, arXiv:2510.12773",
    claim="layers that a Monte Carlo tree search finds keep or improve accuracy within a budget, and teach routers; the model's "
    "weights stay as they are",
    cost="a pass of the model for each path that is scored, at most `rollouts` a text, and small networks to train",
)
def dr_llm(
    target: LanguageModel,
    texts: Sequence[Given],
    *,
    most_texts: Count = 64,
    rollouts: Count = 40,
    price: NonNegative = 0.1,
    slack: NonNegative = 0.05,
    steps: Count = 200,
    hidden: Count = 32,
    learning_rate: Positive = 1e-2,
    seed: Seed = 0,
) -> Prepared:
    """Search which layers the answer of each text can do without, and train the routers of the depth `dr_llm` on that.

    A path scores the mean log-probability of the answer given the question. What is at most `slack` nats below the whole model's
    counts as no worse; of these paths the one with the fewest layers is learnt. The paper scores right answers of logic and
    mathematics. A router that repeats a layer would be of no use with a cache, so paths that do are passed over.

    target: the model that will write, a native or bridged one. texts: with questions, or plain, whose second half is the answer.
    most_texts: of them, at most. rollouts: of a search. price: of a layer, as a share of all, in nats. slack: nats.
    steps: of training. hidden: features of a router. learning_rate: of theirs. seed: of searches and first weights.
    """
    total, charge, examples = target.about.layers, NOTHING, list[tuple[tuple[int, ...], tuple[int, ...]]]()

    def said(prompt: tuple[int, ...], answer: tuple[int, ...], times: tuple[int, ...]) -> float:
        nonlocal charge
        inputs = Inputs(torch.tensor([[*prompt, *answer][:-1]], device=target.device))
        goals = torch.tensor(answer, device=target.device)
        with torch.inference_mode():
            reading = target.read(inputs, depth=FixedDepth(times))
            logits = reading.head.logits(reading.hidden[0, -len(answer) :]).float()
        flops = reading.cost.flops + reading.head.flops(len(answer))
        charge += Charge(flops=flops, moved=reading.cost.moved, read=inputs.length, calls=1)
        return float(logits.log_softmax(-1).gather(-1, goals[:, None]).mean())

    for text in pieces(texts, target.about.context)[:most_texts]:
        prompt, answer = parted(text)
        if not prompt or not answer or len(text.tokens) > target.about.context:
            continue
        least = said(prompt, answer, (1,) * total) - slack

        def score(times: tuple[int, ...], prompt: Ids = prompt, answer: Ids = answer, least: float = least) -> float:
            # what is no worse is equal, so that the search goes for fewer layers
            return -1e9 if max(times) > 1 else min(0.0, said(prompt, answer, times) - least)

        times, _ = search(total, score, rollouts=rollouts, price=price, most=1.0, seed=seed)
        examples.append((prompt, times))
    if not examples:
        raise UsageError("dr_llm: no text has a question and an answer that fit in the context")
    routers, losses, took = train_routers(
        target, examples, hidden=hidden, steps=steps, learning_rate=learning_rate, seed=seed
    )
    saved = sum(total - sum(times) for _, times in examples) / len(examples)
    line = f"{saved:.1f} of {total} layers are left out for a text; loss from {losses[0]:.3f} to {losses[-1]:.3f}"
    return Prepared(routers.save, charge + took, (line,))
