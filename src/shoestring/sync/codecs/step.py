"""The step of a uniform grid that loses least of a group's energy."""

import torch
from torch import Tensor

from shoestring.sync.codecs.groups import TILE

GAUSSIAN = {2: 1.2479, 3: 0.7344, 4: 0.4201, 8: 0.0386}
"""Steps that are best for a normal distribution, in units of the mean magnitude (J. Max (1960), Quantizing for minimum
distortion, has them in standard deviations: 0.9957, 0.5860, 0.3352, 0.0308); only where the search sets out."""
ROUNDS = {2: 4, 3: 5, 4: 6, 8: 8}
SEGMENT = 4096


def best_steps(part: Tensor, bits: int) -> Tensor:
    """The step s of each row of a matrix [groups, width] for L = 2^bits levels (i + 1/2 - L/2) s; float64 [groups].

    1 bit: in closed form, s / 2 = mean |x|, the 1-norm scale of EF-SignSGD (Karimireddy et al. (2019), arXiv:1901.09847).
    2 bits: with q = 1/2 where |x| <= s and 3/2 beyond, s <- sum |x| q / sum q^2, Lloyd's method on a grid kept uniform.
    3, 4, 8 bits: with M = (L - 1) s / 2 the outermost level, n_in magnitudes up to it, n_out beyond and A the sum of those,

        M <- A / (n_in / (3 (L - 1)^2) + n_out),

    Newton's step to the least of n_in s^2 / 12 + sum_out (|x| - M)^2, rounding noise against clipping: OCTAV (Sakr et al.
    (2022), Optimal Clipping and Magnitude-aware Differentiation, arXiv:2206.06501) with 4^-B read as 1 / (L - 1)^2,
    and at last s <- sum |x| q / sum q^2 for the codes q that this step gives. A fixed number of rounds (ROUNDS), from the
    step that suits a normal distribution. Sums are taken so that they do not depend on the number of threads. No step is
    longer than 2 max|x| / L, beyond which a grid only coarsens.
    """
    levels, width = 1 << bits, part.shape[1]
    rows, share = _segments(part)
    total = _reduce(rows, torch.zeros(len(rows), 1, device=part.device))[1]
    total = _whole(total, share)
    if bits == 1:
        return 2 * total / width
    most = torch.maximum(part.amax(1), -part.amin(1)).double()
    longest = 2 * most / levels
    step = torch.minimum(GAUSSIAN[bits] * total / width, longest)
    for _ in range(ROUNDS[bits]):
        border = (step if bits == 2 else step * (levels - 1) / 2).float()
        count, excess = _reduce(rows, border.repeat_interleave(share)[:, None])
        beyond = _whole(count, share)
        magnitude = _whole(excess, share) + border.double() * beyond
        if bits == 2:
            step = (total / 2 + magnitude) / (width / 4 + 2 * beyond)
        else:
            outermost = magnitude / ((width - beyond) / (3 * (levels - 1) ** 2) + beyond)
            step = 2 * outermost / (levels - 1)
        step = torch.minimum(step, longest)
    return step if bits == 2 else torch.minimum(_refit(rows, step, levels, share), longest)


def _refit(rows: Tensor, step: Tensor, levels: int, share: int) -> Tensor:
    """The step of least squares for the codes that `step` gives: sum |x| q / sum q^2 with q = min(floor(|x| / s), L / 2 - 1)
    + 1/2. What is lost is then sum x^2 - (sum |x| q)^2 / sum q^2, so that coding never loses more than the signal itself."""
    divisor = step.float().masked_fill(step == 0, 1).repeat_interleave(share)[:, None]
    high = max(1, TILE // rows.shape[1])
    products, squares = [], []
    for piece, own in zip(rows.split(high), divisor.split(high), strict=True):
        magnitude = piece.abs()
        place = (magnitude / own).floor_().clamp_(max=levels / 2 - 1).add_(0.5)
        products.append(magnitude.mul_(place).sum(1))
        squares.append(place.square_().sum(1))
    product, square = (_whole(torch.cat(each).double(), share) for each in (products, squares))
    return product / square


def _segments(part: Tensor) -> tuple[Tensor, int]:
    """The rows in pieces of at most SEGMENT entries, and how many make a row. A last piece is filled up with zeros, which
    count for nothing here. A sum over one short piece is taken by one thread, in one order."""
    groups, width = part.shape
    share = -(-width // SEGMENT)
    if share == 1:
        return part, 1
    missing = share * SEGMENT - width
    whole = torch.nn.functional.pad(part, (0, missing)) if missing else part
    return whole.reshape(groups * share, SEGMENT), share


def _reduce(rows: Tensor, border: Tensor) -> tuple[Tensor, Tensor]:
    """For each row, how many magnitudes lie beyond its border [rows, 1] and by how much together; float64 [rows]."""
    high = max(1, TILE // rows.shape[1])
    counts, sums = [], []
    for piece, own in zip(rows.split(high), border.split(high), strict=True):
        excess = piece.abs().sub_(own).clamp_min_(0)
        sums.append(excess.sum(1))
        counts.append(excess.sign_().sum(1))
    return torch.cat(counts).double(), torch.cat(sums).double()


def _whole(sums: Tensor, share: int) -> Tensor:
    """The sums of rows from those of their segments; running ones, since one thread takes each row of them."""
    return sums.view(-1, share).cumsum(1)[:, -1]
