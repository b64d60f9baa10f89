"""A Transformer cut into the stages of a pipeline: an embedding, equal runs of blocks, and norm, head and loss."""

from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.errors import UsageError
from shoestring.model.transformer import Transformer


class First(nn.Module):
    """Token ids [B, T] -> hidden states [B, T, width]."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.embedding, self.scale = model.embedding, model.config.input_scale

    def forward(self, inputs: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(inputs)
        return embedded * self.scale


class StageBlocks(nn.Module):
    """Hidden states to hidden states. Every stage has rotary tables of its own, which hold no weights."""

    def __init__(self, model: Transformer, start: int, count: int) -> None:
        super().__init__()
        self.blocks, self.rotary = model.blocks[start : start + count], model.rotary

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.rotary(0, x.shape[1], None)
        for block in self.blocks:
            x = block(x, cos, sin)
        return x


class Last(nn.Module):
    """(hidden states, targets [B, T]) -> the mean loss, nats per token."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.norm, self.head, self.scale = model.norm, model.head, model.config.output_scale

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        assert self.head is not None
        logits = self.head(self.norm(x) * self.scale)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def cut(model: Transformer, stages: int) -> tuple[First, list[StageBlocks], Last]:
    """(first, stages, last) as `sync.pipeline.engine.Pipeline` takes them, sharing the weights of `model`: what the pipeline
    collects is in it.

    Raises: UsageError for a tied model, whose embedding would be in two places, and where the layers do not divide.
    """
    if model.head is None:
        raise UsageError(
            "a tied model cannot be cut: its embedding is in the first stage and in the last; set tied = false"
        )
    if model.config.embedding is not None:
        raise UsageError("a model with a narrow embedding cannot be cut into stages of a pipeline: leave embedding out")
    if model.stack is not None:
        raise UsageError(
            "a model with running states, routers, ladders or spans cannot be cut into stages of a pipeline"
        )
    if stages < 1 or model.config.layers % stages:
        raise UsageError(f"{model.config.layers} layers do not divide into {stages} equal stages")
    each = model.config.layers // stages
    return First(model), [StageBlocks(model, stage * each, each) for stage in range(stages)], Last(model)
