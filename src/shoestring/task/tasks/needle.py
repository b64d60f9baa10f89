"""A fact hidden in a long text (needle in a haystack)."""

from typing import Annotated

from annotated_types import Interval

from shoestring.method import Fraction, method
from shoestring.task.chance import Chance
from shoestring.task.reading import last_whole_number
from shoestring.task.task import GeneratedTask, Problem

NAME = "needle"

_PLACES = (
    "Accra Amman Ankara Athens Baku Bamako Bangkok Beirut Berlin Bern Bogota Brasilia Bucharest Budapest "
    "Cairo Canberra Caracas Colombo Conakry Dakar Damascus Delhi Dhaka Doha Dublin Freetown Gaborone Hanoi "
    "Harare Havana Helsinki Jakarta Kabul Kampala Kathmandu Khartoum Kigali Kinshasa Lima Lisbon Ljubljana "
    "London Luanda Lusaka Madrid Manila Maputo Minsk Monrovia Moscow Muscat Nairobi Oslo Ottawa Paris Prague "
    "Quito Rabat Riga Rome Santiago Seoul Sofia Tallinn"
)
_WHO = "baker boat child cook doctor farmer gardener horse miller painter pilot sailor"
_WHERE = "bridge garden harbour hill house lake market mill river road station tower"
PLACES = tuple(_PLACES.split())
WHO = tuple(f"the {each}" for each in _WHO.split())
WHAT = ("crosses", "follows", "leaves", "likes", "passes", "reaches", "sees", "waits for", "walks past", "watches")
WHERE = tuple(f"the {each}" for each in _WHERE.split())


@method(
    "task",
    kind="task",
    name=NAME,
    paper="RULER: What's the Real Context Size of Your Long-Context Language Models?, arXiv:2404.06654",
    claim="finding one fact is solved at lengths at which finding it among many like it is not",
    cost="none",
)
class Needle(GeneratedTask):
    """A sentence that gives a number, among others that do not matter, then the question for it.

    Sentences are drawn from a small grammar, so that the text has any length; the paper takes essays, or one sentence repeated.
    Of several needles, each about another place, one is asked for.

    sentences: around the needles.
    needles: sentences that give a number.
    depth: where the needle that is asked for stands, from 0, first, to 1, last; None: anywhere.
    digits: of a number.
    """

    name = NAME
    instruction = "The text gives the number of a place. Answer with the number alone."
    stop = ("\n", ".")

    def __init__(
        self,
        *,
        sentences: Annotated[int, Interval(ge=0, le=100_000)] = 20,
        needles: Annotated[int, Interval(ge=1, le=64)] = 1,
        depth: Fraction | None = None,
        digits: Annotated[int, Interval(ge=1, le=18)] = 4,
    ) -> None:
        self.sentences, self.needles, self.depth, self.digits = sentences, needles, depth, digits
        self.most_tokens = digits + 4

    def draw(self, chance: Chance) -> Problem:
        """As `GeneratedTask.draw`."""
        least = 10 ** (self.digits - 1) if self.digits > 1 else 0
        places = chance.some(PLACES, self.needles)
        numbers = [chance.whole(least, 10**self.digits - 1) for _ in places]
        text = [_filler(chance) for _ in range(self.sentences)]
        for place, number in zip(places[1:], numbers[1:], strict=True):
            text.insert(chance.whole(0, len(text)), _fact(place, number))
        at = chance.whole(0, len(text)) if self.depth is None else round(self.depth * len(text))
        text.insert(at, _fact(places[0], numbers[0]))
        prompt = f"{' '.join(text)}\nThe number of {places[0]} is"
        return Problem("", prompt, {"depth": at / max(len(text) - 1, 1)}, str(numbers[0]))

    def extract(self, problem: Problem, text: str) -> str | None:
        """The last number of the text, where it is whole."""
        return last_whole_number(text)


def _fact(place: str, number: int) -> str:
    return f"The number of {place} is {number}."


def _filler(chance: Chance) -> str:
    words = f"{chance.pick(WHO)} {chance.pick(WHAT)} {chance.pick(WHERE)}."
    return words[0].upper() + words[1:]
