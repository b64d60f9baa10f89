"""Choosing the largest entries and reading a payload of places, one by one."""

import math


def largest(values: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(values)), key=lambda place: (-abs(values[place]), place))[:count])


def digits(payload: list[int], bits: int, count: int) -> list[int]:
    """Integers as the layout of packing has them: by planes, or digit by digit."""
    if bits in (1, 2, 4):
        size = -(-count * bits // 8)
        return [payload[at % size] >> at // size * bits & 2**bits - 1 for at in range(count)]
    if bits == 8:
        return payload
    flat = digits(payload, 1, count * bits)
    return [sum(flat[place * count + at] << place for place in range(bits)) for at in range(count)]


def places(payload: list[int], count: int) -> list[int]:
    low = payload[0]
    start = 1 + -(-count * low // 8)
    remainders = digits(payload[1:start], low, count) if low else [0] * count
    found: list[int] = []
    place, zeros = -1, 0
    for digit in digits(payload[start:], 1, 8 * (len(payload) - start)):
        if digit:
            place += 1 + (zeros << low) + remainders[len(found)]
            found.append(place)
            zeros = 0
        else:
            zeros += 1
    return found


def entropy(share: float) -> float:
    """Bits for each place kept, where each entry is kept with this probability on its own."""
    return -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / share
