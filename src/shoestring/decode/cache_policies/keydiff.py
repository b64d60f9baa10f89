"""Tokens whose keys are least like the others."""

from torch import Tensor
from torch.nn import functional as F

from shoestring.decode.cache_policy import Seen
from shoestring.method import method


@method(
    "decode",
    kind="cache policy",
    name="keydiff",
    paper="KeDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained "
    "Environments, arXiv:2504.15364",
    claim="with a cache of 8k places (about 23% smaller), less than 0.04% behind the whole cache on LongBench, with Llama 3.1 8B "
    "and Llama 3.2 3B",
    cost="4 Hk S D operations a layer at each eviction; no attention is looked at, so fast kernels stay in use",
)
class KeyDiff:
    """Keep the tokens whose keys are least like the mean direction of all keys.

        score(i) = - k_i . a / (|k_i| |a|),   a = 1/S sum_j k_j / |k_j|

    k: [S, D], the keys of a head. The source evicts after each block of a long prompt, so that no more than the budget and a block
    is ever there; so does the engine. Nothing protects the latest tokens.
    """

    figures, window = 0, 0

    def score(self, seen: Seen) -> Tensor:
        """As `CachePolicy.score`."""
        directions = F.normalize(seen.keys.float(), dim=-1)
        return -F.cosine_similarity(directions, directions.mean(1, keepdim=True), dim=-1)

    def watch(self, figures: Tensor, attention: Tensor, first: int) -> None:
        """Nothing: keys are enough."""
