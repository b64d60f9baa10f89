"""How much of a question its answer takes up."""

import re
from collections.abc import Sequence

from shoestring.data.chat import Message
from shoestring.method import method

_WORDS = re.compile(r"\w+")

SHORT = 3
"""Letters of a word that is not looked for, at most: such are in every text."""


@method(
    "data",
    kind="return",
    name="relevance",
    paper="Efficient Multitask Learning in Small Language Models Through Upside-Down Reinforcement Learning, arXiv:2502.09854",
    claim="with upside-down reinforcement learning and distilled data, a model of 100 M parameters is within 5% of the "
    "relevance of models up to 80 times larger",
    cost="a look at the words of each question and answer",
)
def relevance(asked: Sequence[Message], answer: Message) -> str:
    """'low', 'medium' or 'high': a third, two thirds or more of the words of the last question that are in the answer too.

    Words of up to `SHORT` letters do not count. The paper has a larger model judge relevance; words are counted here.
    asked: the messages before the answer.
    """
    question = next((one["content"] for one in reversed(asked) if one["role"] == "user"), "")
    wanted = {word for word in _WORDS.findall(question.lower()) if len(word) > SHORT}
    found = wanted & set(_WORDS.findall(answer["content"].lower()))
    share = len(found) / len(wanted) if wanted else 1.0
    return "low" if share < 1 / 3 else "medium" if share < 2 / 3 else "high"
