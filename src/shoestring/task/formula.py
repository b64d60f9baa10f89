"""The value of a formula that a model wrote. It is parsed here, and never run."""

import re
from fractions import Fraction

_PIECES = re.compile(r"\s*(?:([0-9]{1,9})|([-+*/()]))", re.ASCII)
_TIES = {"+": 1, "-": 1, "*": 2, "/": 2}


class NoFormula(ValueError):
    """Why a text is no formula, in a few words."""


def numbers_and_value(text: str, *, longest: int = 200) -> tuple[list[int], Fraction]:
    """(the numbers of a formula in their order, its value).

    A formula has whole numbers without signs, + - * /, and brackets; what ties alike goes from left to right (Dijkstra's
    shunting yard, so no depth of brackets exhausts anything).
    longest: characters at most.
    Raises: Refused.
    """
    if len(text) > longest:
        raise NoFormula("it is too long")
    numbers, values, signs, wanted = list[int](), list[Fraction](), list[str](), True
    """wanted: whether a number, or what opens, comes next."""
    place = 0
    text = text.rstrip()
    while place < len(text):
        piece = _PIECES.match(text, place)
        if piece is None:
            raise NoFormula("it holds what is no part of a formula")
        place, number, sign = piece.end(), piece[1], piece[2]
        if number is not None:
            if not wanted or (place < len(text) and text[place].isdigit()):
                raise NoFormula("it is no formula")
            numbers.append(int(number))
            values.append(Fraction(int(number)))
            wanted = False
        elif sign == "(":
            if not wanted:
                raise NoFormula("it is no formula")
            signs.append(sign)
        elif wanted:
            raise NoFormula("it is no formula")
        elif sign == ")":
            while signs and signs[-1] != "(":
                _apply(values, signs.pop())
            if not signs:
                raise NoFormula("a bracket is not opened")
            signs.pop()
        else:
            while signs and signs[-1] != "(" and _TIES[signs[-1]] >= _TIES[sign]:
                _apply(values, signs.pop())
            signs.append(sign)
            wanted = True
    if wanted:
        raise NoFormula("it is no formula")
    while signs:
        sign = signs.pop()
        if sign == "(":
            raise NoFormula("a bracket is not closed")
        _apply(values, sign)
    return numbers, values[0]


def _apply(values: list[Fraction], sign: str) -> None:
    right, left = values.pop(), values.pop()
    if sign == "/":
        if not right:
            raise NoFormula("it divides by zero")
        values.append(left / right)
    else:
        values.append(left + right if sign == "+" else left - right if sign == "-" else left * right)
