"""Keys and values in the memory of the host, while the model is on an accelerator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.decode.cache_stores.disk import DiskStore
from shoestring.method import method


@method(
    "decode",
    kind="cache store",
    name="mom",
    paper="MOM: Memory-Efficient Offloaded Mini-Sequence Inference for Long Context Language Models, arXiv:2504.12526",
    claim="peak memory more than halved, and Llama 3.2 8B reads 455k tokens in place of 155k on one GPU, with the same outputs",
    cost="each layer of each pass has the keys and values of its rows copied to the device",
)
class OffloadedStore:
    """Hold keys and values in the host's memory; of one layer at a time they are on the device. What is read is what was written.

    With it goes the edit `mini_sequences`, which reads long prompts with the hidden features of a piece at a time; and the head is
    asked of the last token alone, as always here. The source copies the next layer while one is computed; here each waits for
    its own. A model that is on the CPU has its memory there already: keys and values are then in a mapped file, as of the store
    `disk`.
    """

    exact = True

    def empty(self, places: int, heads: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.empty`."""
        if like.device.type == "cpu":
            return DiskStore().empty(places, heads, width, like)
        return (torch.zeros(places, heads, width, dtype=like.dtype, pin_memory=like.device.type == "cuda"),)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.encode`."""
        return (x,)

    def decode(self, codes: Sequence[Tensor], like: Tensor) -> Tensor:
        """As `CacheStore.decode`."""
        return codes[0].to(like.device)

    def readable(self, width: int) -> bool:
        """As `CacheStore.readable`."""
        return False

    def elsewhere(self, codes: Sequence[Tensor]) -> int:
        """All of it."""
        return sum(one.nbytes for one in codes)
