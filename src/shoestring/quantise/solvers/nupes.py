"""Codes that are learned, over the whole range of codes, so that layers give what they gave."""

import torch
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.method import Iterations, Positive, method
from shoestring.quantise.format import CodeFormat, Encoded, checked


@method(
    "quantise",
    kind="solver",
    name="nupes",
    paper="NUPES : Non-Uniform Post-Training Quantization via Power Exponent Search, arXiv:2308.05600",
    claim="state-of-the-art compression rates in both data-free and data-driven configurations",
    cost="for each of `steps` steps two products [out, in] x [in, in]",
)
class NUPES:
    """Learn each code by gradients, free to go to any code and not only to the next ones up and down.

    Yvinec et al. (2023), arXiv:2308.05600. With H the mean of x x^T over what the layer reads and W~(v) the weights of codes v:

        minimise tr((W~(h(v)) - W) H (W~(h(v)) - W)^T)  over v [out, in], real,

        h(v) = floor(v) + (S(b (f - 1/2)) - S(-b / 2)) / (S(b / 2) - S(-b / 2)),    f = v - floor(v), S the sigmoid

    and b growing from 1 to 40 over the steps (Adam), so that codes are soft at first and whole at the end. A row keeps its
    learned codes where they lose less than those that it began with, the nearest. Scales and exponents stay as they were fitted.
    Differs: the paper minimises over texts' activations; H says the same of a squared error. It learns the exponent too.

    steps: of Adam. rate: of a step, in codes.
    """

    reads = True

    def __init__(self, *, steps: Iterations = 150, rate: Positive = 0.2) -> None:
        self.steps, self.rate = steps, rate

    def __call__(self, weight: Tensor, format: CodeFormat, hessian: Tensor | None) -> Encoded:
        """As `parts.Solver`. Raises: UsageError where codes are no numbers to go between, as those of small floating point."""
        plain = checked(weight)
        form = format.of(plain)
        if not form.smooth:
            raise UsageError(f"the codes of '{form.choice.name}' are not in equal steps: use --solver gptq")
        importance = None if hessian is None else hessian.diagonal().clamp_min(0)
        start = form.encode(plain, importance if importance is not None and bool(importance.any()) else None)
        if hessian is None:
            return start
        moments = hessian / hessian.diagonal().mean().clamp_min(1e-30)
        nearest, low = start.unpacked(), int(start.unpacked().min())
        codes = nearest.float().requires_grad_()
        with torch.enable_grad():
            optimiser = torch.optim.Adam([codes], lr=self.rate)
            for step in range(self.steps):
                sharp = 40 ** (step / max(self.steps - 1, 1))
                loss = _lost(_values(form, start, softly(codes, sharp)) - plain, moments).sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                with torch.no_grad():
                    codes.clamp_(low, form.levels - 1)
        with torch.no_grad():
            learned = codes.detach().round().to(torch.uint8)
            before, after = (_lost(_values(form, start, one) - plain, moments) for one in (nearest, learned))
            chosen = torch.where((after < before)[:, None], learned, nearest)
        return form.encoded(chosen, start.parameters)


def softly(codes: Tensor, sharp: float) -> Tensor:
    """h(v), as `NUPES` has it: whole codes stay as they are. sharp: b."""
    whole = codes.detach().floor()
    edge = torch.sigmoid(torch.tensor(-sharp / 2))
    return whole + (torch.sigmoid(sharp * (codes - whole - 0.5)) - edge) / (1 - 2 * edge)


def _values(form: CodeFormat, start: Encoded, codes: Tensor) -> Tensor:
    """float32 [rows, columns]: what codes, whole or not, stand for."""
    parts = []
    for first, last, part in form.runs(start.columns):
        fitted = form.part(start.parameters, first, last)
        parts.append(form.value(codes[:, first:last].reshape(-1, part), fitted).view(start.rows, -1))
    return torch.cat(parts, 1)


def _lost(off: Tensor, moments: Tensor) -> Tensor:
    """[rows]: the mean square of what each output is off by, but for a factor."""
    return ((off @ moments) * off).sum(1)
