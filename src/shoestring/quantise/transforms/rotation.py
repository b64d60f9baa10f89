"""Rotations of the hidden states and of the values of heads, folded into the weights: nothing is left to do where the model
runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.method import Seed, method
from shoestring.model.norm import RMSNorm
from shoestring.quantise.format import CodeFormat
from shoestring.quantise.native_parts import KnownBlock, known_blocks
from shoestring.quantise.parts import Changed, Over, Transform
from shoestring.quantise.transforms.hadamard import orthogonal


@method(
    "quantise",
    kind="transform",
    name="rotation",
    paper="QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, arXiv:2404.00456",
    claim="rotations take outliers from hidden states without changing the output; LLaMA-2-70B in 4 bits keeps 99% of its accuracy",
    cost="one product of each matrix with a rotation; nothing where the model runs",
)
class Rotation(Transform):
    """Rotate the residual stream, and the values of each head, by orthogonal matrices that the weights around them take in.

    Ashkboos et al. (2024), arXiv:2404.00456. With R [width, width] and, of each key and value head, S [d, d], both orthogonal,
    and the gains g of the norms taken into the matrices that follow (the gains become 1, as an RMS norm commutes with R):

        embedding E R;  readers W diag(g) R;  writers R^T W;  head H diag(g) R;  values S^T V;  their output O S

    Differs: no rotation is left between the two matrices of a feed-forward layer or on queries and keys, which would take time
    where the model runs (`hadamard` has such). Where embedding and head are one matrix, the last gain cannot be taken into it:
    the stream is left, which is said, and only values are rotated. Native models with RMS norms and the parts of Llama.

    seed: of the rotations.
    """

    def __init__(self, *, seed: Seed = 0) -> None:
        self.seed = seed

    @torch.no_grad()
    def of_model(self, model: LanguageModule, text: Sequence[Batch], format: CodeFormat, over: Over) -> Changed:
        """As `Transform.of_model`."""
        known, blocks = known_blocks(model)
        draw, tensors, notes = torch.Generator().manual_seed(self.seed), dict[str, Tensor](), list[str]()
        norms = [norm for one in blocks for norm in (one.block.token_norm, one.block.channel_norm)]
        plain = all(type(norm) is RMSNorm for norm in [*norms, known.norm])
        stream: Tensor | None = None
        if not plain or known.head is None:
            why = "its norms are no RMS norms" if not plain else "embedding and head are one matrix"
            notes.append(f"rotation: the hidden states are not rotated, as {why}; the values of heads are")
        else:
            stream = orthogonal(known.config.width, draw).double()
            tensors["embedding.weight"] = _of(known.embedding.weight, stream)
            tensors["head.weight"] = _of(known.head.weight, stream, known.norm.weight)
            tensors["norm.weight"] = torch.ones_like(known.norm.weight)
        for one in blocks:
            tensors |= _rotated(one, stream, draw)
        return Changed(tensors, tuple(notes))


def _of(weight: Tensor, right: Tensor, gain: Tensor | None = None) -> Tensor:
    """W diag(g) R."""
    wide = weight.double() if gain is None else weight.double() * gain.double()
    return (wide @ right).to(weight.dtype)


def _rotated(one: KnownBlock, stream: Tensor | None, draw: torch.Generator) -> dict[str, Tensor]:
    """The new weights of a block, by their names in the model."""
    block, mixer, channels = one.block, one.block.token_mixer, one.block.channel_mixer
    qkv, output = mixer.qkv.weight.double().clone(), mixer.output.weight.double().clone()
    bias = None if mixer.qkv.bias is None else mixer.qkv.bias.double().clone()
    each, first = one.head_width, one.values
    for head in range(one.shared):
        turn = orthogonal(each, draw).double()
        rows = slice(first + head * each, first + (head + 1) * each)
        qkv[rows] = turn.T @ qkv[rows]
        if bias is not None:
            bias[rows] = turn.T @ bias[rows]
        for query in range(head * one.sharing, (head + 1) * one.sharing):
            columns = slice(query * each, (query + 1) * each)
            output[:, columns] = output[:, columns] @ turn
    made = dict[str, Tensor]()
    own = mixer.qkv.weight.dtype
    if stream is not None:
        qkv = qkv * block.token_norm.weight.double() @ stream
        output = stream.T @ output
        for part, linear in (("token_mixer", mixer.output), ("channel_mixer", channels.output)):
            if linear.bias is not None:
                made[f"{one.name}.{part}.output.bias"] = (linear.bias.double() @ stream).to(own)
        made[f"{one.name}.channel_mixer.gate_up.weight"] = _of(
            channels.gate_up.weight, stream, block.channel_norm.weight
        )
        made[f"{one.name}.channel_mixer.output.weight"] = (stream.T @ channels.output.weight.double()).to(own)
        for norm in ("token_norm", "channel_norm"):
            made[f"{one.name}.{norm}.weight"] = torch.ones_like(getattr(block, norm).weight)
    made[f"{one.name}.token_mixer.qkv.weight"] = qkv.to(own)
    made[f"{one.name}.token_mixer.output.weight"] = output.to(own)
    if bias is not None:
        made[f"{one.name}.token_mixer.qkv.bias"] = bias.to(own)
    return made
