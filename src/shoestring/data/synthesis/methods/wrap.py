"""Documents told anew by a model, in styles that are asked for."""

from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Interval

from shoestring.contract.author import AuthoredText
from shoestring.data.synthesis.synthesise import Instruction
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, NonNegative, Whole, method

Style = Literal["easy", "medium", "hard", "questions"]

STYLES: dict[Style, str] = {
    "easy": "Tell the passage again so that a small child understands it: short sentences, everyday words.",
    "medium": "Tell the passage again in clear, well-formed prose, as an encyclopedia would.",
    "hard": "Tell the passage again in dense, learned prose, as a scholar would for other scholars.",
    "questions": "Turn the passage into a dialogue: questions about what it says, each followed by its answer.",
}
"""What is asked for each of the paper's four styles, in words of our own."""

RUN = 5
"""Words of a run by which a text is held against its seed."""


@method(
    "data",
    kind="synthesis",
    name="wrap",
    paper="Rephrasing the Web: A Recipe for Compute and Data-Efficient Language Modeling, arXiv:2401.16380",
    claim="on C4, rephrased text beside real text speeds up pre-training about 3 times, and improves perplexity by more than 10 % "
    "on average across subsets of the Pile",
    cost="an answer about as long as the passage, for each passage and style, charged",
)
class Wrap:
    """Asks an instruction-tuned model to tell each passage of a document in one style or several.

    Passages are whole lines together, `passage` characters at most: the paper cuts at 300 tokens, as more is lost of longer ones.
    Each text keeps its passage beside it ('seed_text'). The paper trains on real and rephrased text in equal parts: make both a
    [[data.source]], and the mixture fixed with equal weights. Where it differs: the wording of the instructions is our own, and
    answers that were cut off, are too short or repeat their passage are dropped.

    author: where the model that writes lies.
    styles: of 'easy', 'medium', 'hard' and 'questions', each asked for every passage.
    passage: characters of a passage, at most; a longer line is cut.
    shortest: characters of a passage, at least: what is shorter is passed over.
    tokens: of an answer, at most.
    temperature: of the draws; 0: the likeliest token.
    least: length of an answer as a share of its passage's, at least.
    copied: the largest share of an answer's runs of 5 words that its passage may have.
    seed: of the draws.
    """

    def __init__(
        self,
        *,
        author: str,
        styles: tuple[Style, ...] = ("medium", "questions"),
        passage: Annotated[int, Interval(ge=20, le=1 << 20)] = 1200,
        shortest: Count = 100,
        tokens: Count = 400,
        temperature: NonNegative = 0.7,
        least: Fraction = 0.2,
        copied: Fraction = 0.8,
        seed: Whole = 0,
    ) -> None:
        if not styles or len(set(styles)) < len(styles):
            raise UsageError("wrap: styles: name one at least, and each once")
        self.author, self.styles, self.passage, self.shortest = author, styles, passage, shortest
        self.tokens, self.temperature, self.least, self.copied, self.seed = tokens, temperature, least, copied, seed

    def asked(self, document: str) -> Sequence[Instruction]:
        return [
            Instruction(f"{STYLES[style]} Write only the new text.\n\nThe passage:\n\n{passage}", passage, style)
            for passage in passages(document, self.passage)
            if len(passage) >= self.shortest
            for style in self.styles
        ]

    def fault(self, asked: Instruction, answer: AuthoredText) -> str:
        if not answer.whole:
            return "cut off"
        if len(answer.text) < max(1.0, self.least * len(asked.seed)):
            return "too short"
        own, seed = word_runs(answer.text), word_runs(asked.seed)
        return "repeats its passage" if own and len(own & seed) / len(own) > self.copied else ""


def passages(text: str, most: int) -> list[str]:
    """A text as passages of whole lines, at most `most` characters each."""
    lines = [line[start : start + most] for line in text.splitlines() for start in range(0, max(len(line), 1), most)]
    found, held = [], ""
    for line in lines:
        if held and len(held) + 1 + len(line) > most:
            found.append(held)
            held = line
        else:
            held = f"{held}\n{line}" if held else line
    return [each.strip() for each in [*found, held] if each.strip()]


def word_runs(text: str) -> set[tuple[str, ...]]:
    """The runs of `RUN` words of a text, whatever their case."""
    words = text.lower().split()
    return {tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1)}
