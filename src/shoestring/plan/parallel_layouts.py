"""Layouts of several devices, ranked by the share of their peak that a step is predicted to reach, where they fit.

Efficient Parallelization Layouts for Large-Scale Distributed Model Training (Hagemann et al. 2023, arXiv:2311.05610) measures which
layouts are fast; this predicts it from the model's own `Cost` and a device's data sheet. A step takes, in each device,

    products / (peak ACHIEVED narrow) + elementwise bytes / bandwidth + exposed communication,   times the pipeline's bubble.

narrow = d / (d + NARROW) for the smallest side d of the divided products: narrow ones do not fill a device. Activations are
10 + 24 / tensor bytes a token, width and layer in 16 bits, without sequence parallelism, and the width alone where layers are
checkpointed (Korthikanti et al. 2022, arXiv:2205.05198). All-reduces of 'tensor' are waited for, and keys, values, tokens sent.
Those of gradients and weights run beside the backward pass, two thirds of the products. Experts are taken to have equally many
tokens. The constants are round numbers, and not fitted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

from shoestring.budget.units import show
from shoestring.contract.cost import Shape
from shoestring.errors import UsageError, did_you_mean
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.parallel.expert_parallel import expert_layers
from shoestring.parallel.layout import ParallelLayout, Precision
from shoestring.parallel.traffic import traffic

ACHIEVED = 0.8
"""Share of the peak that large products of matrices reach."""

NARROW = 256
"""A product whose smallest side this is reaches half of that."""

ELEMENTWISE = 3
"""How often the activations of a layer are moved: written, read forward, read backward."""

CHECKPOINTING: tuple[Literal["none", "products", "layers"], ...] = ("none", "products", "layers")

PRODUCTS, PRODUCTS_DIVIDED = 6, 16
"""Bytes a token, width and layer, in 16 bits, that layers keep which keep what products give: the layer's input and the outputs of
its two parts; and queries, keys, values, what attention gives and the hidden features, which 'tensor' divides."""

RESERVED = 0.9
"""Share of a device's memory that may be planned for: the rest is the allocator's, the library's and the communication's."""


@dataclass(frozen=True)
class DeviceFigures:
    """A device by its data sheet.

    flops: dense bfloat16 operations a second. memory: bytes. bandwidth: of it, bytes a second.
    link: bytes a second, each way, to the others of its node. network: to other nodes. node: devices of a node.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    node: int = 8


DEVICES = {
    "a100": DeviceFigures(312e12, 80e9, 2.04e12, 300e9, 25e9),
    "h100": DeviceFigures(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "h200": DeviceFigures(989e12, 141e9, 4.8e12, 450e9, 50e9),
}
"""By name: SXM modules, NVLink, and a network card of 200 or 400 Gb/s for each device."""


@dataclass(frozen=True)
class Placement:
    """A layout at work.

    micro_batch: sequences at once, of each part of the batch. stages: of a pipeline; [parallel] has none.
    """

    layout: ParallelLayout
    micro_batch: int = 1
    stages: int = 1

    @property
    def devices(self) -> int:
        return self.layout.processes * self.stages


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a parameter in memory.

    weight, gradient: as they are kept. optimizer: its state, and a copy of the weight where it keeps one.
    divided: whether copies divide the optimiser's among them (ZeRO-1), which [parallel] does within 'fsdp' alone.
    """

    weight: float = 4
    gradient: float = 4
    optimizer: float = 8
    divided: bool = False


@dataclass(frozen=True)
class PredictedStep:
    """What a placement is predicted to take of each device.

    seconds: of a step, by cause. share: of the devices' peak that the model's own operations are.
    memory: bytes at most.
    """

    placement: Placement
    seconds: dict[str, float]
    share: float
    memory: float


@dataclass(frozen=True)
class ModelSizes:
    """A model as its prediction needs it: parameters of all layers, and of the rest; operations of a trained sequence.

    experts: of the parameters of layers, those of experts. counts: experts of each layer that has some. choices: of experts by the
    tokens of a sequence, in all layers. undivided: share of the operations that experts are, which 'tensor' does not divide.
    """

    config: ModelConfig
    layers: int
    rest: int
    flops: int
    forward: int
    experts: int = 0
    counts: tuple[int, ...] = ()
    choices: float = 0.0
    undivided: float = 0.0

    @classmethod
    def of(cls, config: ModelConfig) -> "ModelSizes":
        """Of a configuration; no memory is taken for its weights."""
        with torch.device("meta"):
            model = Transformer(config)
        inside = sum(p.numel() for p in model.blocks.parameters())
        every = sum(p.numel() for p in model.parameters())
        context = config.context
        trained, read = (model.cost(Shape(1, context, backward=back)).flops for back in (True, False))
        head = 2 * context * config.width * config.vocabulary
        stacks = list(expert_layers(model).values())
        asked = [(layer.router.taken(context, True), layer.input.weight, layer.output.weight) for layer in stacks]
        experts = sum(reading.numel() + writing.numel() for _, reading, writing in asked)
        by_them = sum(2 * taken * (one[0].numel() + other[0].numel()) for taken, one, other in asked)
        counts = tuple(layer.experts for layer in stacks)
        choices = float(sum(taken for taken, *_ in asked))
        return cls(
            config, inside, every - inside, trained, read - head, experts, counts, choices, by_them / max(read, 1)
        )


def predict(
    sizes: ModelSizes, device: DeviceFigures, placement: Placement, batch: int, state: StateBytes | None = None
) -> PredictedStep:
    """What a step of `batch` sequences takes."""
    layout, config, state = placement.layout, sizes.config, state or StateBytes()
    tensor, stages, width = layout.tensor, placement.stages, config.width
    micro_batches = max(1, batch // (layout.parts * placement.micro_batch))
    tokens, layers = placement.micro_batch * config.context / layout.context, config.layers / stages
    again = sizes.forward if layout.checkpointing == "layers" else 0
    divided = (1 - sizes.undivided) / tensor + sizes.undivided
    each = placement.micro_batch * (sizes.flops + again) * divided / (stages * layout.context)
    side = min(tokens, width // tensor, config.hidden // tensor)
    products = micro_batches * each / (device.flops * ACHIEVED * side / (side + NARROW))
    kept = tokens * width * (10 + 24 / tensor)
    moved = ELEMENTWISE + (layout.checkpointing != "none")
    elementwise = micro_batches * layers * moved * kept / device.bandwidth
    found = traffic(
        layout,
        layers=round(layers),
        root=round(state.weight * sizes.rest / stages),
        layer_bytes=round(state.weight * sizes.layers / stages),
        width=width,
        tokens=round(tokens),
        micro_batches=micro_batches,
        expert_bytes=round(state.weight * sizes.experts / stages),
        choices=placement.micro_batch * sizes.choices / (stages * layout.context),
        keys=2 * layers * config.key_value_heads * config.head_width / tensor,
        value=2,
    )
    near = device.link if tensor <= device.node else device.network
    far = device.link if placement.devices <= device.node else device.network
    waited = found.tensor / near
    ring = found.context / (device.link if layout.context * tensor <= device.node else device.network)
    sent = found.expert / (device.link if layout.expert * layout.context * tensor <= device.node else device.network)
    beside = max(0.0, (found.data + found.fsdp) / far - 2 / 3 * products)
    bubble = (stages - 1) / micro_batches * (products + elementwise + waited + ring + sent)
    seconds = {
        "products": products,
        "elementwise": elementwise,
        "tensor": waited,
        "keys and values": ring,
        "experts": sent,
        "gradients and weights": beside,
        "bubble": bubble,
    }
    total = sum(seconds.values())
    share = batch * sizes.flops / (total * placement.devices * device.flops)
    return PredictedStep(placement, seconds, share, memory_of(sizes, placement, state, micro_batches))


def memory_of(sizes: ModelSizes, placement: Placement, state: StateBytes, micro_batches: int, value: int = 2) -> float:
    """Bytes of weights, gradients, optimiser's state and activations at the most in one device. value: bytes of an activation."""
    layout, config = placement.layout, sizes.config
    layers = (sizes.layers - sizes.experts) / (layout.tensor * placement.stages)
    experts, apart = sizes.experts / placement.stages, 0.0
    if layout.expert > 1:  # `fully_shard` leaves them alone
        apart, copies = experts / layout.expert, layout.parts // layout.expert
        apart *= state.weight + state.gradient + state.optimizer / (copies if state.divided else 1)
    else:
        layers += experts
    own = layers + sizes.rest
    parts = layout.fsdp * (layout.data if state.divided else 1)
    held = apart + own / layout.fsdp * (state.weight + state.gradient) + own / parts * state.optimizer
    if layout.fsdp > 1:
        # whole at once: what is outside of layers, and two layers, of which the next is fetched beside the one at work; a
        # layer's gradients, and those outside, before they are scattered
        each, narrow = layers / config.layers, 2.0 if layout.precision == "bfloat16" else 0.0
        held += sizes.rest * state.weight + 2 * each * (narrow or state.weight)
        held += sizes.rest * state.gradient + each * (state.gradient + narrow)  # in float32 for their sum
    tokens = placement.micro_batch * config.context / layout.context
    per_layer = tokens * config.width * (10 + 24 / layout.tensor) * value / 2
    under_way = min(placement.stages, micro_batches)
    layers_here = under_way * config.layers / placement.stages
    if layout.checkpointing == "none":
        activations = layers_here * per_layer
    else:  # and one layer whole, while it is computed again
        each = 2.0 if layout.checkpointing == "layers" else PRODUCTS + PRODUCTS_DIVIDED / layout.tensor
        activations = layers_here * tokens * config.width * each * value / 2 + per_layer
    logits = 4 * 2 * tokens * config.vocabulary
    return held + activations + logits


def placements(
    config: ModelConfig,
    devices: int,
    batch: int,
    node: int = 8,
    experts: Sequence[int] = (),
    context: int = 1,
    precision: Precision = "float32",
) -> Iterator[Placement]:
    """Every way in which [parallel] can train a model on so many devices.

    experts: of each layer that has some. context: processes that divide each row. precision: where `fsdp` gathers weights.
    """
    if devices % context or config.context % (2 * context):
        return
    devices //= context
    for tensor in range(1, min(devices, node) + 1):
        if devices % tensor or any(size % tensor for size in (config.heads, config.key_value_heads, config.hidden)):
            continue
        for fsdp in range(1, devices // tensor + 1):
            data, left = divmod(devices // tensor, fsdp)
            if left or batch % (data * fsdp):
                continue
            most = math.gcd(data * fsdp, *experts) if experts else 1
            groups = [expert for expert in range(1, most + 1) if most % expert == 0]
            gathered: Precision = precision if fsdp > 1 else "float32"
            for expert, checkpointing in product(groups, CHECKPOINTING):
                layout = ParallelLayout(data, fsdp, tensor, context, expert, checkpointing, gathered)
                part = batch // layout.parts
                for exponent in range(int(math.log2(part)) + 1):
                    if part % 2**exponent == 0:
                        yield Placement(layout, 2**exponent)


def ranked(
    config: ModelConfig,
    devices: int,
    gpu: str,
    batch: int,
    state: StateBytes | None = None,
    context: int = 1,
    precision: Precision = "float32",
) -> list[PredictedStep]:
    """The placements that fit, the largest predicted share of peak first.

    config: with its vocabulary. gpu: of `DEVICES`. batch: sequences of a step. context: processes that divide each row.
    precision: of weights that are gathered.
    Raises: UsageError for an unknown device, and where none fits: it says the least that would do.
    """
    if gpu not in DEVICES:
        raise UsageError(f"no figures of a device '{gpu}': {did_you_mean(gpu, DEVICES)}")
    device, sizes = DEVICES[gpu], ModelSizes.of(config)
    every = placements(config, devices, batch, device.node, sizes.counts, context, precision)
    found = [predict(sizes, device, each, batch, state) for each in every]
    if not found:
        raise UsageError(
            f"a batch of {batch} does not divide among {devices} devices in any layout: give another batch"
        )
    fitting = [each for each in found if each.memory <= RESERVED * device.memory]
    if not fitting:
        least = min(each.memory for each in found)
        raise UsageError(
            f"no layout fits: the leanest takes {show('bytes', least)} of each device, and {gpu} may be given "
            f"{show('bytes', RESERVED * device.memory)}: give more devices, a shorter context or a smaller model"
        )
    return sorted(fitting, key=lambda each: -each.share)


def best_of_each(steps: list[PredictedStep]) -> list[PredictedStep]:
    """Of each layout, the micro-batch with the largest share; in order."""
    seen: dict[ParallelLayout, PredictedStep] = {}
    for each in steps:
        seen.setdefault(each.placement.layout, each)
    return list(seen.values())
