"""Error feedback: what a codec lost is added to what it is given next."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Held = Literal["accumulator", "weights"]

PART = "@part"
"""Ends the name of the residual of a tensor's part that this worker averages."""


@dataclass(frozen=True)
class ErrorFeedback:
    """What is to be fed back; `Residuals` is the state.

    Karimireddy et al. (2019), Error Feedback Fixes SignSGD and other Gradient Compression Schemes, arXiv:1901.09847:
    p = g + e, sent = C(p), e <- p - C(p). Therien et al. (2025), MuLoCo, arXiv:2505.23725, let the accumulator decay,
    with the pseudo-gradient Delta in place of g:

        E <- beta E + Delta;   sent = C(E);   E <- E - C(E)

    decay: beta in [0, 1]. 1 loses nothing for good; 0 feeds nothing back. The code published with MuLoCo
    multiplies Delta by the outer learning rate first, which a codec that scales with its input cannot see; here the
    accumulator is in the units of Delta.

    held: where E waits for the next exchange. 'accumulator': beside the weights, as above. Local steps do not see it there,
    and may undo in steep directions what the accumulator undoes again. 'weights' (ours): worker m begins its next steps from

        theta - beta E_m,     sent = C(Delta_m),     E_m = Delta_m - C(Delta_m)

    rather than from the global weights theta, so that what local steps leave of the error is in its next Delta. The mean of
    the workers' weights is then, for beta = 1, a plain outer step of rate 1 and one quantisation ('gather'), the one that no
    codec had touched. What 'scatter' loses of the average is not fed back: its owner alone knows it, and would have to
    hold it K-fold. Raises: ValueError for a decay outside [0, 1].
    """

    decay: float = 1.0
    held: Held = "accumulator"

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be between 0 and 1, not {self.decay}")


class Residuals:
    """The residuals e of one worker, float32, by parameter name.

    'NAME', shaped like the parameter, is the error of what this worker sent; 'NAME@part' is the error of the average of
    the rows that it owns in a scattered exchange, where an accumulator holds them. Nothing changes but by `commit` and
    `forget`, so a round that is abandoned leaves no trace.

    They are in the worker's checkpoints. What is lost: a worker's own residuals where it dies and the run goes on without
    it (they are of its data, and no other worker has them: it comes back with the state of another, and none); the
    residuals of parts are forgotten by all when the number of workers or the rank changes, as the rows then change
    hands. Either loses at most one quantisation error of one round.
    """

    def __init__(self, feedback: ErrorFeedback) -> None:
        self.feedback, self.in_weights = feedback, feedback.held == "weights"
        self.tensors: dict[str, Tensor] = {}
        self.place: tuple[int, int] | None = None

    def compensate(self, name: str, values: Tensor, place: tuple[int, int]) -> Tensor:
        """decay e + values, or where the weights hold e, values; a tensor of its own. place: the rank and the number of
        workers of this exchange."""
        residual = self.tensors.get(name)
        if residual is None or self.in_weights or (name.endswith(PART) and place != self.place):
            return values.clone()
        return residual.mul(self.feedback.decay).add_(values)

    def commit(self, staged: Mapping[str, Tensor], place: tuple[int, int]) -> None:
        """Put the residuals of a round that all have applied in the place of the old ones."""
        if place != self.place:
            self.tensors = {name: tensor for name, tensor in self.tensors.items() if not name.endswith(PART)}
            self.place = place
        self.tensors = {**self.tensors, **staged}

    def withheld(self, name: str) -> Tensor | None:
        """What a parameter of this worker is to differ by from the global weights, theta - local; None for nothing."""
        found = self.tensors.get(name) if self.in_weights else None
        return None if found is None else found * self.feedback.decay

    def forget(self, names: Iterable[str]) -> None:
        """Drop what is kept of these parameters."""
        gone = set(names)
        self.tensors = {name: kept for name, kept in self.tensors.items() if name.removesuffix(PART) not in gone}
