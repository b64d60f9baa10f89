"""Bytes that a process of a layout receives in a step, by formula: what its collectives take when each is a ring.

Of n processes, a ring all-gather or reduce-scatter of b bytes brings each process b (n - 1) / n, an all-reduce twice that. As much
is sent. What a network adds is not counted.
"""

from dataclasses import dataclass

from shoestring.parallel.layout import ParallelLayout


@dataclass(frozen=True)
class StepTraffic:
    """Bytes a step, by cause.

    data: gradients of copies, all-reduced. fsdp: weights gathered, gradients scattered. tensor: activations all-reduced.
    context: keys and values passed around, and their gradients; with the gradients of weights, all-reduced.
    expert: tokens that go to experts of other processes, and what those say, there and back.
    whole: matrices gathered for optimisers that need them whole, and sent back.
    """

    data: int = 0
    fsdp: int = 0
    tensor: int = 0
    context: int = 0
    expert: int = 0
    whole: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.data + self.fsdp + self.tensor + self.context + self.expert + self.whole


def ring(size: float, processes: int) -> float:
    """Bytes that one process receives of an all-gather of `size` bytes."""
    return size * (processes - 1) / processes


def traffic(
    layout: ParallelLayout,
    *,
    layers: int,
    root: int,
    layer_bytes: int,
    width: int,
    tokens: int,
    micro_batches: int = 1,
    expert_bytes: int = 0,
    choices: float = 0.0,
    keys: float = 0.0,
    whole: int = 0,
    value: int = 4,
) -> StepTraffic:
    """The traffic of one step.

    layers: how many. layer_bytes: of weights in all layers, as they are kept. root: bytes of the weights outside of layers.
    width: of the hidden states. value: bytes of one of them. tokens: of one micro-batch in one process. micro_batches: of a step.
    expert_bytes: of `layer_bytes`, those of experts, which 'tensor' does not divide. choices: of experts by the tokens of a
    micro-batch in one process, in all layers; they are taken to be spread evenly.
    keys: numbers that keys and values of a token are, in all layers of one process.
    whole: bytes for whole matrices, as the optimiser says.
    """
    own = (layer_bytes - expert_bytes) / layout.tensor
    data = fsdp = tensor = context = expert = 0.0
    if layout.expert > 1:
        context = 2 * ring(expert_bytes / layout.expert, layout.context)
        data = 2 * ring(expert_bytes / layout.expert, layout.parts // layout.expert)
        passes = 4 if layout.checkpointing == "none" else 6
        expert = micro_batches * passes * ring(value * width * choices, layout.expert)
    else:
        own += expert_bytes
    if layout.fsdp > 1:
        # layers: gathered forward, and again backward; the root stays whole in between. Each gradient is scattered
        gathered = 0.5 if layout.precision == "bfloat16" else 1.0
        fsdp = micro_batches * ((2 * gathered + 1) * ring(own, layout.fsdp) + 2 * ring(root, layout.fsdp))
        data += micro_batches * 2 * ring((own + root) / layout.fsdp, layout.data)
    elif layout.data > 1:
        data += 2 * ring(own + root, layout.data)
    if layout.context > 1:
        # forward, perhaps again, and backward all but their own come by; gradients go all the way round
        rounds = (2 if layout.checkpointing == "none" else 3) * (layout.context - 1) + layout.context
        context += micro_batches * rounds * value * tokens * keys + 2 * ring((own + root) / layout.fsdp, layout.context)
    if layout.tensor > 1:
        passes = 4 if layout.checkpointing == "none" else 6
        tensor = micro_batches * layers * passes * 2 * ring(value * tokens * width, layout.tensor)
    return StepTraffic(round(data), round(fsdp), round(tensor), round(context), round(expert), whole)
