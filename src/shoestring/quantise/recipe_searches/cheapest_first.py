"""The smallest model within a target of loss, cheap solvers before dear ones."""

from shoestring.method import method
from shoestring.quantise.loss_target import NothingFits, RecipeChoice, RecipeTrials


@method(
    "quantise",
    kind="recipe search",
    name="cheapest_first",
    paper="Efficient LLM Inference on CPUs, arXiv:2311.00502",
    claim="recipes are tuned until the accuracy is met: int4 weights within 1% of float32 on the models shown",
    cost="for each solver about log2 of the number of sizes quantisations and readings of the held-out text",
)
class CheapestFirst:
    """Find the smallest size whose held-out loss rises by no more than the limit.

    Shen et al. (2023), arXiv:2311.00502, have a flow that makes a model for each of several recipes (solver, groups of 32 to 1024
    columns) and measures it, until one meets the target. The paper does not say in which order. Here, with sizes s_1 < .. < s_n,
    each a width and a group, and solvers from the cheapest on:

        for each solver:  the least k, below those found already, with L(s_k, solver) - L <= limit,  by bisection

    So the cheap solver's answer bounds the search of the dear one. Bisection takes it that the loss falls as the size grows: where
    it does not, a smaller size that is within the limit too may be passed over, but what is returned has been measured.
    Choosing on the text that is measured on favours what suits that text.
    """

    def choose(self, trials: RecipeTrials) -> RecipeChoice:
        """As `RecipeSearch.choose`."""
        best: RecipeChoice | None = None
        upper, failed = len(trials.sizes), NothingFits(trials.limit)
        for solver in range(len(trials.sizes[0])):
            low = 0
            while low < upper and not trials.over():
                middle = (low + upper) // 2
                recipe = trials.sizes[middle][solver]
                rise = trials.rise(recipe)
                failed.tried.append((rise, recipe))
                if rise <= trials.limit:
                    best, upper = recipe, middle
                else:
                    low = middle + 1
        if best is None:
            raise failed.error(trials.over)
        return best
