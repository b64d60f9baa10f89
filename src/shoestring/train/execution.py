"""How the arithmetic of a run is carried out, as its configuration says: device, compiled blocks, attention, loss."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from shoestring.errors import UsageError
from shoestring.model.transformer import Transformer
from shoestring.objective.cross_entropy import CrossEntropy, Fused, plain
from shoestring.train.sections import ExecutionConfig


def require_device(config: ExecutionConfig) -> None:
    """Raises: UsageError where the device that is asked for is not here."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "execution.device = cuda: torch finds no GPU here; leave it out, or give --execution.device cpu"
        )


def compiles(config: ExecutionConfig) -> bool:
    """Whether the first step has the compiler work."""
    return config.compile == "blocks" or config.loss == "fused_compiled"


def preloaded(configs: Iterable[ExecutionConfig]) -> list[str]:
    """Modules that a server from which runs are forked is to import first, as all of them are likely to: the compiler."""
    compiled = any(
        config.compile in ("auto", "blocks") or config.loss in ("auto", "fused_compiled") for config in configs
    )
    return ["torch._dynamo"] if compiled else []


def keep_compiled_code(cache: Path) -> None:
    """Have the compiler keep its results beside the timings that count on them, and not where a reboot clears them. A
    place that the user chose (TORCHINDUCTOR_CACHE_DIR) stands."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))


def cross_entropy(config: ExecutionConfig) -> CrossEntropy:
    """The loss of the output layer that `config.loss` names."""
    # made only where it is asked for: the compiler alone takes seconds to import
    ways: dict[str, Callable[[], CrossEntropy]] = {
        "plain": lambda: plain,
        "fused": Fused,
        "fused_compiled": lambda: Fused(compiled=True),
    }
    return ways[config.loss]()


def prepare_blocks(model: nn.Module, config: ExecutionConfig) -> None:
    """Set a model's blocks to compute as `config` says. Each block is compiled as a region of its own: the blocks are
    alike, so the compiler works once for all of them."""
    if not isinstance(model, Transformer):
        return  # of a wrapped model every part is its makers' own
    spans = [] if model.stack is None else model.stack.spans
    uncompiled = {layer for span, layers in spans if not span.compiles for layer in layers}
    for number, block in enumerate(model.blocks):
        if config.attention == "chunked" and hasattr(block.token_mixer, "chunked"):
            block.token_mixer.chunked = True
        if config.compile == "blocks" and block.compiles and number not in uncompiled:
            block.compile(dynamic=False)
