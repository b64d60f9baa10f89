"""The memory that an integer-only model takes while it is used."""

import torch

from shoestring.contract.batch import Inputs
from shoestring.quantise.footprint import Footprint, live_bytes
from shoestring.quantise.integer_only.model import IntegerOnlyTransformer


@torch.no_grad()
def integer_footprint(model: IntegerOnlyTransformer) -> Footprint:
    """What the model takes, one token at a time: exactly what is there as it runs in this library.

    weights: of all its tensors, with multipliers and the tables of functions and of rotary positions. cache: of one text as long as
    the context, int8. activations: the most that is alive at once as the last token of such a text is read and the integer logits
    of the next one are made. Products of 64 bits are among them, as torch writes them to memory; they would be registers of a
    processor.
    """
    context = model.config.context
    cache = model.new_cache(1, context)
    cache.lengths = [context - 1]  # of whatever tokens: what is alive depends on how many they are
    token = Inputs(torch.zeros(1, 1, dtype=torch.int64))
    model.read(token)  # the first product of a process tries which way is exact
    with live_bytes() as most:
        reading = model.read(token, cache)
        model.integer_head.integers(reading.hidden[:, -1])
    return Footprint(model.weight_bytes, cache.nbytes, most[0], 8)
