"""What damages bytes, values, JSON and TOML at random. All chance comes from the `random.Random` that is given."""

import copy
import json
import random
import tomllib
from typing import Any

import tomli_w

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "-1", "nan", "true", "null", "..", "../..", "/", "/dev/zero",
    "a/b", "a\nb", "a\x00b", "\x1b[31m", "[/b]", "\ud800", "ß", "𝔘", "\ufeff", "a" * 5000, [], {}, [[]], [1, 2], {"": 1},
    [None], {"more": {"more": 1}},
)  # fmt: skip
"""Values that are seldom expected."""

PIECES = tuple(b"0123456789\"'{}[],:.=-+# \n\r\t\x00\xff\\u")


def mutate_bytes(content: bytes, draw: random.Random, within: int | None = None) -> bytes:
    """One to four changes of some bytes: set, flipped, deleted, inserted, doubled, swapped, cut off.

    within: the changes begin in the first so many bytes, the whole content by default.
    """
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(max(1, min(within or len(changed), len(changed))))
        length = draw.choice((1, 1, 1, 2, 4, 8, 64, 4096))
        match draw.randrange(9):
            case 0 if place < len(changed):
                changed[place] = draw.randrange(256)
            case 1 if place < len(changed):
                changed[place] = draw.choice(PIECES)
            case 2 if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = draw.randbytes(length)
            case 5:
                changed[place:place] = changed[place : place + length]
            case 6:
                other = draw.randrange(max(1, len(changed)))
                changed[place : place + length] = changed[other : other + length]
            case 7:
                changed[place : place + length] = bytes(length)
            case _ if draw.random() < 0.3:
                del changed[place:]
    return bytes(changed)


def mutate_value(value: Any, draw: random.Random) -> Any:
    """A copy of nested dicts and lists with one to three changes: another value, a missing, doubled, renamed or new entry."""
    changed = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        changed = _change(changed, draw)
    if draw.random() < 0.02:  # last: what is nested so deep cannot be copied
        deep = nested(draw.choice((50, 500, 3000)), draw)
        if not isinstance(changed, dict) or draw.random() < 0.2:
            return deep
        changed[draw.choice((*changed, "more"))] = deep
    return changed


def strange(draw: random.Random) -> Any:
    """A value that is seldom expected."""
    return copy.deepcopy(draw.choice(STRANGE))


def nested(depth: int, draw: random.Random) -> Any:
    """Lists or dicts within each other."""
    value: Any = 1
    listed = draw.random() < 0.5
    for _ in range(depth):
        value = [value] if listed else {"a": value}
    return value


def mutate_json(content: str | bytes, draw: random.Random) -> bytes:
    """JSON text, damaged: mostly another value in good JSON, else other bytes, the same key twice, or numbers without end."""
    plain = content.encode() if isinstance(content, str) else content
    way = draw.random()
    if way < 0.25:
        return mutate_bytes(plain, draw)
    if way < 0.3:
        return draw.choice((b"", b"null", b"[]", b"{}", b"3", b'"text"', b"[" * 100_000, b"9" * 5000, plain * 2))
    value = json.loads(plain)
    text = _json(mutate_value(value, draw))
    if way < 0.35 and text.startswith("{"):
        text = "{" + text[1:-1] + ", " + _json(mutate_value(value, draw))[1:]
    return text.encode("utf-8", "surrogatepass")


def mutate_json_lines(content: str | bytes, draw: random.Random) -> bytes:
    """Text of a JSON value a line, damaged in one line, or with a line missing, doubled, moved or cut short."""
    lines = (content.encode() if isinstance(content, str) else content).splitlines(keepends=True)
    if not lines:
        return mutate_bytes(b"\n", draw)
    place = draw.randrange(len(lines))
    match draw.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, draw.choice(lines))
        case 2:
            draw.shuffle(lines)
        case 3:
            lines[-1] = lines[-1][: draw.randrange(len(lines[-1]))]
        case _:
            lines[place] = mutate_json(lines[place], draw) + b"\n"
    return b"".join(lines)


def mutate_toml(content: str | bytes, draw: random.Random) -> bytes:
    """TOML text, damaged: another value in good TOML, or other bytes."""
    text = content.decode() if isinstance(content, bytes) else content
    if draw.random() < 0.25:
        return mutate_bytes(text.encode(), draw)
    for _ in range(10):
        try:
            written = tomli_w.dumps(mutate_value(tomllib.loads(text), draw))
            return written.encode("utf-8", "surrogatepass")
        except (TypeError, ValueError, RecursionError, AttributeError):
            continue  # TOML has no null, and no table that is not one
    return mutate_bytes(text.encode(), draw)


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return '{"a":' * 3000 + "1" + "}" * 3000


def _change(value: Any, draw: random.Random) -> Any:
    """`value` with one change somewhere in it; it may be changed in place."""
    holders: list[Any] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            if one:
                holders.append(one)
            waiting.extend(one.values() if isinstance(one, dict) else one)
    if not holders or draw.random() < 0.03:
        return strange(draw)
    holder = draw.choice(holders)
    key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    match draw.randrange(7):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(("", "more", f"{key} ", f"{key}.x", str(key)[:-1], "__class__"))] = holder.pop(key)
        case 1 | 2 if isinstance(holder, list):
            holder.insert(key, draw.choice((strange(draw), copy.deepcopy(holder[key]))))
        case 2:
            holder[draw.choice(("more", "", "name", "version"))] = strange(draw)
        case 3:
            holder[key] = _near(holder[key], draw)
        case 4:
            other = draw.choice(holders)
            if isinstance(other, dict):
                holder[key] = copy.deepcopy(other[draw.choice(list(other))])
            else:
                holder[key] = copy.deepcopy(draw.choice(other))
        case _:
            holder[key] = strange(draw)
    return value


def _near(value: Any, draw: random.Random) -> Any:
    """A value of the same type, near to one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, -value, value * 2, value // 2, value * 1000))
    if isinstance(value, float):
        return draw.choice((value + 1, -value, value * 2, value / 2, value * 1e30))
    if isinstance(value, str):
        place = draw.randrange(len(value) + 1)
        return value[:place] + draw.choice(("", "x", " ", "0", "\n", "/", "ß")) + value[place + draw.randrange(2) :]
    return strange(draw)
