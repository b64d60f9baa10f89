"""How long an answer is."""

from collections.abc import Sequence

from shoestring.data.chat import Message
from shoestring.method import method

STEPS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
"""Words that are told apart: few enough to be seen often each."""


@method(
    "data",
    kind="return",
    name="length",
    paper="Efficient Multitask Learning in Small Language Models Through Upside-Down Reinforcement Learning, arXiv:2502.09854",
    claim="with upside-down reinforcement learning and distilled data, a model of 100 M parameters is within 5% of the "
    "relevance of models up to 80 times larger",
    cost="a look at the words of each answer",
)
def length(asked: Sequence[Message], answer: Message) -> str:
    """The words of the answer, rounded to one of `STEPS`.

    asked: the messages before it.
    """
    words = len(answer["content"].split())
    return str(min(STEPS, key=lambda step: abs(step - words)))
