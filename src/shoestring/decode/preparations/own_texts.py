"""Texts that a model writes itself, to align a draft with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from shoestring.budget.charge import NOTHING
from shoestring.contract.model import LanguageModel
from shoestring.decode.engine import Engine
from shoestring.decode.own_texts import OwnText, own_texts, save_texts
from shoestring.decode.preparation import Given, Prepared, pieces
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError
from shoestring.method import Count, Seed, method

Temperature = Annotated[float, Interval(ge=0, le=10)]


@method(
    "decode",
    kind="preparation",
    name="own_texts",
    paper="FastDraft: How to Train Your Draft, arXiv:2411.11055",
    claim="a draft that is pre-trained cheaply and aligned on texts of its target: up to 3x (code) and 2x (other tasks) faster "
    "where memory bounds the speed",
    cost="an answer of the model for each text and temperature",
)
def write_own_texts(
    target: LanguageModel,
    texts: Sequence[Given],
    decode: Callable[[Sequence[int]], str],
    ends: frozenset[int],
    *,
    prompt_tokens: Count = 32,
    tokens: Count = 128,
    temperatures: tuple[Temperature, ...] = (0.0, 0.7, 1.0),
    rows: Count = 16,
    seed: Seed = 0,
) -> Prepared:
    """Let the model go on from many places of the texts, and keep what it writes as a corpus to align a draft model with.

    The paper's recipe is three steps: pre-train a small model of the same tokenizer (`shoestring train`, recipes/fastdraft), let
    the target write, and train the draft on that from where it is. A mixture of temperatures, the greedy one among them, is as the
    paper's.

    target: the model that will write. texts: plain ones are cut into pieces, whose beginnings are the prompts; of questions, the
        question is. decode: makes text of tokens. ends: tokens that end an answer.
    prompt_tokens: of plain text; a piece has `tokens` more. tokens: of an answer at most.
    temperatures: each gives an answer to each prompt.
    rows: answers at a time. seed: of the draws.
    """
    parts = pieces(texts, prompt_tokens + tokens)
    prompts = [text.tokens[: text.prompt or prompt_tokens] for text in parts]
    prompts = [each for each in prompts if each and len(each) + tokens <= target.about.context]
    if not prompts:
        raise UsageError(f"no prompt leaves room for {tokens} tokens in a context of {target.about.context}")
    written = list[OwnText]()
    for place, temperature in enumerate(temperatures):
        engine = Engine(target, rows=rows)
        written += own_texts(engine, prompts, tokens, Sampling(temperature=temperature, seed=seed + place), ends)
    charge = sum((each.charge for each in written), NOTHING)

    def save(path: Path) -> None:
        save_texts(path, written, decode)

    return Prepared(save, charge, (f"{len(written):,} texts, {charge.written:,} tokens written",))
