"""QK-Clip: queries and keys of heads whose attention logits grow too large are made smaller after a step."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, method


@method(
    "surgery",
    kind="edit",
    name="qk_clip",
    paper="Kimi K2: Open Agentic Intelligence, arXiv:2507.20534",
    claim="with Muon (MuonClip), a model of a trillion parameters was trained on 15.5 trillion tokens without a loss spike",
    cost="in a step that is measured, the projection of queries and keys and one product of queries and keys more",
)
class QKClip:
    """Keep the attention logits of each head at `most`, by its weights: MuonClip is this edit with the optimiser `muon`.

    Kimi Team, 2025, arXiv:2507.20534. With S_h the largest logit q . k / sqrt(d) of head h in the batch, and g = most / S_h where
    that is below 1, after the step of the optimiser

        W_q^h <- sqrt(g) W_q^h,  W_k^h <- sqrt(g) W_k^h;     where heads share a key:  W_q^h <- g W_q^h

    as the source leaves keys alone that several heads share. Biases are scaled with their rows. A head below `most` stays as it is.

    The first step of a run is not measured. Queries and keys that are normed have bounded logits, and are
    refused. For native models.

    most: the largest logit that is left alone. every: steps from one that is measured to the next.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, most: Positive = 100.0, every: Count = 1) -> None:
        self.most, self.every = most, every

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Nothing is to be decided. Raises: UsageError for a model that is not native, or norms queries and keys."""
        _attentions(model)
        return Decision()

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model, whose attention can be measured."""
        for mixer in _attentions(model):
            mixer.register_forward_pre_hook(_measure)
            mixer.register_buffer("largest_logit", torch.zeros(mixer.split[0], device=model.device))
            mixer.register_buffer("measuring", torch.zeros((), dtype=torch.bool, device=model.device))
            mixer.measured = 0
        model.changed()
        return model

    def before_step(self, model: LanguageModule, at: At) -> Charge:
        """As `Stepped.before_step`: what measuring took. Raises: UsageError where several processes train."""
        if dist.is_available() and dist.is_initialized():
            raise UsageError("qk_clip sees the logits of one process alone: train in one process")
        spent = NOTHING
        for mixer in _clipped(model):
            spent += Charge(flops=mixer.measured)
            mixer.measured = 0
            mixer.measuring.zero_()
        return spent

    @torch.no_grad()
    def after_step(self, model: LanguageModule, at: At) -> None:
        """As `Stepped.after_step`: clip what was measured, and measure again in its time."""
        for mixer in _clipped(model):
            factor = (self.most / mixer.largest_logit.clamp_min(self.most)).to(mixer.qkv.weight)
            self._scale(mixer, factor)
            mixer.largest_logit.zero_()
            mixer.measuring.fill_((at.step + 1) % self.every == 0)

    @staticmethod
    def _scale(mixer: Any, factor: Tensor) -> None:
        queries, shared, _ = mixer.split
        alone = queries == shared
        rows = (factor.sqrt() if alone else factor).repeat_interleave(mixer.head_width)
        parts = [rows, rows if alone else torch.ones_like(rows[: shared * mixer.head_width])]
        scale = torch.cat(parts)
        mixer.qkv.weight[: len(scale)].mul_(scale[:, None])
        if mixer.qkv.bias is not None:
            mixer.qkv.bias[: len(scale)].mul_(scale)

    def figures(self, model: LanguageModule) -> dict[str, Tensor]:
        """As `Metered.figures`: the largest logit of the step, 0 where none was measured."""
        return {"largest_logit": torch.stack([mixer.largest_logit.amax() for mixer in _clipped(model)]).amax()}

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model, which nobody measures any more."""
        for mixer in list(_clipped(model)):
            for key, hook in list(mixer._forward_pre_hooks.items()):
                if hook is _measure:
                    del mixer._forward_pre_hooks[key]
            del mixer.largest_logit, mixer.measured, mixer.measuring
        model.changed()
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        return f"qk_clip: the attention logits of {len(_clipped(model))} layers are kept at {self.most:g}"


def _clipped(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if "largest_logit" in module._buffers]


def _attentions(model: LanguageModule) -> list[Any]:
    """The softmax attention of a native model's layers."""
    known = dict(model.named_modules())
    found: list[Any] = [known.get(f"{layer}.token_mixer") for layer in model.anatomy().layers]
    found = [mixer for mixer in found if hasattr(mixer, "split") and not getattr(mixer, "recurrent", False)]
    if not found:
        raise UsageError("qk_clip: no layer of this model has attention of our own: it is for native models")
    if not all(type(mixer.query_norm) is nn.Identity and type(mixer.qkv) is nn.Linear for mixer in found):
        raise UsageError(
            "qk_clip scales plain projections of queries and keys that are not normed after that: set qk_norm = false in "
            "[model.token_mixer], and give this edit before those that replace matrices"
        )
    return found


@torch.no_grad()
def _measure(mixer: Any, given: tuple[Any, ...]) -> None:
    """Note the largest logit of each head, while the mixer is measured and trains."""
    if not mixer.measuring or (len(given) > 4 and given[4] is not None):
        return
    x, cos, sin = given[:3]
    mask = given[3] if len(given) > 3 else None
    queries, shared, _ = mixer.split
    size = (queries + shared) * mixer.head_width
    bias = None if mixer.qkv.bias is None else mixer.qkv.bias[:size]
    both = nn.functional.linear(x.detach(), mixer.qkv.weight[:size].to(x.dtype), bias).unflatten(
        -1, (-1, mixer.head_width)
    )
    both = torch.addcmul(both * cos.to(both.dtype), both.roll(mixer.head_width // 2, -1), sin.to(both.dtype))
    q, k = both.split((queries, shared), 2)
    k = k.repeat_interleave(queries // shared, 2)
    length = x.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    for row in range(x.shape[0]):
        scores = (q[row].transpose(0, 1) @ k[row].permute(1, 2, 0)).float() * mixer.head_width**-0.5
        seen = causal if mask is None else mask if mask.ndim == 2 else mask[row if len(mask) > 1 else 0]
        mixer.largest_logit.copy_(mixer.largest_logit.maximum(scores.masked_fill(~seen, -torch.inf).amax((1, 2))))
    tokens = x.shape[0] * length
    mixer.measured += 2 * tokens * size * x.shape[-1] + 2 * tokens * length * queries * mixer.head_width
