"""When answers will be at their ends, from how fast passes are and what is asked already."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoestring.serve.rates import Rates


@dataclass
class ForecastRow:
    """An answer. unread: tokens that are to be read before its first. left: tokens that it will write."""

    unread: int
    left: int


def forecast(rows: Sequence[ForecastRow], rates: Rates, places: int, tokens: int) -> list[float]:
    """Seconds from now until each row is at its end.

    The rows are worked off as by `FirstCome`: those that write read a token in each pass, the rest of the pass goes to prompts, in
    the order of the rows. So many passes as change nothing are counted together.

    rows: in their order. places: rows that are worked on at a time. tokens: of a pass, at most.
    """
    left = [ForecastRow(max(row.unread, 1), max(row.left, 1)) for row in rows]
    ends, now = [0.0] * len(rows), 0.0
    going = list(range(min(places, len(rows))))
    following = len(going)
    while going:
        writing = [place for place in going if left[place].unread == 1]
        reading = [place for place in going if left[place].unread > 1]
        room = max(tokens - len(writing), 1)
        prompts = sum(left[place].unread for place in reading)
        read = min(room, prompts)
        # until the first prompt is read, or the first answer is at its end
        steps = max(1, -(-left[reading[0]].unread // room) - 1) if reading and prompts > room else 1
        if writing:
            ending = min(left[place].left for place in writing)
            steps = min(steps, ending) if reading else ending
        now += steps * rates.seconds(len(writing) + read)
        for place in writing:
            left[place].left -= steps
        budget = steps * read
        for place in reading:
            took = min(budget, left[place].unread)
            budget -= took
            left[place].unread -= took
            if not left[place].unread:  # with its last token comes the first of the answer
                left[place].unread = 1
                left[place].left -= 1
        for place in [place for place in going if left[place].left <= 0]:
            ends[place] = now
            going.remove(place)
            if following < len(rows):
                going.append(following)
                following += 1
    return ends
