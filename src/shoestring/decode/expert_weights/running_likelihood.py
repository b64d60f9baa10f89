"""Experts weighed by how well each has foretold the text so far: Bayes' rule."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.decode.expert_weights.base import keep_top, spread, updates
from shoestring.errors import UsageError
from shoestring.method import Count, Whole, method


@method(
    "decode",
    kind="expert weights",
    name="running_likelihood",
    paper="Branch-Train-Merge, arXiv:2208.03306; HDEE, arXiv:2502.19385",
    claim="ensembles weighed by the domain posterior improve in- and out-of-domain perplexity over one model of "
    "equal training cost",
    cost="every expert reads every token, whatever its weight",
)
class RunningLikelihood:
    """p(D = j | x_<=t) = p(x_<=t | D = j) p(D = j) / sum_j' p(x_<=t | D = j') p(D = j').

    The domain posterior of Li et al. (2022), "Branch-Train-Merge", arXiv:2208.03306, which took it from DEMix
    (arXiv:2108.05036); HDEE (Ersoy et al., 2025, arXiv:2502.19385) evaluates by it. The likelihood is over the row at
    hand, its first token not counted. prior: p(D = j), one each (None: uniform). Their 'cached' prior, a decaying mean of
    posteriors on development text, is one that may be given. top_k: experts that are mixed, 0 = all. every: tokens
    between two updates, 1 in the papers.
    """

    needs_likelihood = True

    def __init__(self, prior: Sequence[float] | None = None, *, top_k: Whole = 0, every: Count = 1) -> None:
        if prior is not None and (min(prior) < 0 or sum(prior) <= 0):
            raise UsageError("a prior over experts is not negative, and not 0 for all")
        self.prior = None if prior is None else torch.tensor(prior, dtype=torch.float64)
        self.top_k, self.every = top_k, every

    def __call__(self, tokens: Tensor, likelihood: Tensor | None) -> Tensor:
        assert likelihood is not None
        length = tokens.shape[1]
        joint = likelihood.double().cumsum(dim=1)[:, updates(length, self.every)]
        if self.prior is not None:
            joint = joint + self.prior.log().to(joint.device)
        return spread(keep_top(joint.softmax(dim=-1), self.top_k), length, self.every)
