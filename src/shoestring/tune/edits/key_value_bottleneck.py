"""A look-up of learnt values by fixed keys: what is learnt in one place of the input space leaves the others alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoestring.budget.charge import Charge
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.role import ADAPTER
from shoestring.errors import UsageError
from shoestring.method import Count, Decay, method
from shoestring.tune import matrix
from shoestring.tune.adapted import Adapted
from shoestring.tune.adapter_edit import AdapterEdit, writers


class LookUpLinear(Adapted):
    """y = base(x) + 1/C sum_c V_c[k_c(x)], k_c the nearest key of codebook c to a fixed projection of x.

    projection: [C, width, in]. keys: [C, K, width]. values: [C, K, out], the only part that is trained.
    """

    roles: ClassVar = {"values": ADAPTER}
    projection: Tensor
    keys: Tensor

    def __init__(self, base: nn.Module, projection: Tensor, keys: Tensor, values: Tensor) -> None:
        super().__init__(base)
        self.register_buffer("projection", projection)
        self.register_buffer("keys", keys)
        self.values = nn.Parameter(values)

    def adapt(self, x: Tensor, plain: Tensor) -> Tensor:
        with torch.no_grad():  # the choice has no gradient
            found = nearest(projected(x.flatten(0, -2).to(self.keys.dtype), self.projection), self.keys)
        numbers = torch.arange(len(self.keys), device=x.device)
        fetched: Tensor = self.values[numbers, found].mean(1)
        return plain + fetched.view(*plain.shape).to(plain.dtype)

    def added_flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        books, count, width = self.keys.shape
        return 2 * tokens * books * width * (self.in_features + count)

    def extra_repr(self) -> str:
        return f"codebooks={self.keys.shape[0]}, keys={self.keys.shape[1]}"


def projected(x: Tensor, projection: Tensor) -> Tensor:
    """[N, C, width] of x [N, in]."""
    return torch.einsum("ni,cwi->ncw", x, projection)


def nearest(points: Tensor, keys: Tensor) -> Tensor:
    """[N, C] int64: of each codebook, the key with the least Euclidean distance to a point [N, C, width]."""
    # |p - k|^2 = |p|^2 - 2 p k + |k|^2, of which the first is the same for all keys
    return (keys.square().sum(-1) - 2 * torch.einsum("ncw,ckw->nck", points, keys)).argmin(-1)


@method(
    "tune",
    kind="edit",
    name="key_value_bottleneck",
    paper="Discrete Key-Value Bottleneck, arXiv:2207.11240",
    claim="without task boundaries, reduces catastrophic forgetting in class-incremental learning across many pretrained models",
    cost="codebooks keys out parameters a matrix; 2 codebooks width (in + keys) operations a token; one pass over some text first",
)
class KeyValueBottleneck(AdapterEdit):
    """Add to what a matrix makes a value that is looked up by the nearest of some fixed keys; the values alone are trained.

        y = W x + 1/C sum_{c=1..C} V_c[k_c],   k_c = argmin_k | P_c x - K_c[k] |

    P_c [width, in] are random and fixed. The keys K_c [keys, width] are found before training, from text alone: drawn among the
    projections P_c x, then moved to the running mean of those nearest to them (exponential moving averages, as vector quantisation
    does it), and then fixed. The values V_c [keys, out] start at zero: a tuned model starts as the one it is made of.

    In the paper the values alone go on to the decoder, and the encoder's own output does not; a pretrained language model would
    begin at nothing then, so here they are added. No one matrix computes the same, so nothing can be merged.

    codebooks: C. keys: of each codebook. width: of a key. decay: of the moving averages. passes: over the text, for the keys.
    targets: patterns of the names of the matrices; empty: the one with which the last layer writes to the residual stream.
    """

    name: ClassVar[str] = "key_value_bottleneck"
    kind: ClassVar[type[Adapted]] = LookUpLinear
    rate: ClassVar[float] = 1e-2
    needs: frozenset[str] = frozenset({"text"})

    def __init__(
        self,
        *,
        codebooks: Count = 16,
        keys: Count = 256,
        width: Count = 12,
        decay: Decay = 0.9,
        passes: Count = 4,
        targets: tuple[str, ...] = (),
    ) -> None:
        super().__init__(targets)
        self.codebooks, self.keys, self.width, self.decay, self.passes = codebooks, keys, width, decay, passes

    def chosen_by_itself(self, model: LanguageModule, names: Sequence[str]) -> list[str]:
        return writers(names)[-1:]

    def begin(self, base: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        inputs, _ = matrix.sizes(base)
        drawn = torch.randn(self.codebooks, self.width, inputs, generator=generator)
        return {"projection": drawn / math.sqrt(inputs)}

    @torch.no_grad()
    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """As `AdapterEdit.decide`, and the keys. Raises: UsageError too without text."""
        if not evidence.text:
            raise UsageError("key_value_bottleneck finds its keys in text: none was given to it")
        made = super().decide(model, evidence)
        names = [full.removesuffix(".projection") for full in made.tensors]
        seen: dict[str, list[Tensor]] = {name: [] for name in names}
        handles = []
        for name in names:

            def keep(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                seen[name].append(given[0].flatten(0, -2).float().cpu())

            handles.append(model.get_submodule(name).register_forward_pre_hook(keep))
        flops = read = 0
        try:
            for batch in evidence.text:
                flops += model.read(batch.inputs).cost.flops
                read += batch.targets.numel()
        finally:
            for handle in handles:
                handle.remove()
        generator, tensors = torch.Generator().manual_seed(evidence.seed + 1), dict(made.tensors)
        for name in names:
            points = projected(torch.cat(seen[name]), tensors[f"{name}.projection"])
            tensors[f"{name}.keys"] = self._keys(points, generator)
        return Decision(made.values, tensors, Charge(flops=flops, read=read))

    def _keys(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """[C, K, width], from points [N, C, width]."""
        chosen = torch.randint(len(points), (self.codebooks, self.keys), generator=generator)
        keys = points[chosen, torch.arange(self.codebooks)[:, None]].contiguous()
        counts, sums = torch.ones(self.codebooks, self.keys), keys.clone()
        for _ in range(self.passes):
            for part in points.split(1024):
                hot = torch.nn.functional.one_hot(nearest(part, keys), self.keys).to(part.dtype)
                counts.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
                sums.mul_(self.decay).add_(torch.einsum("nck,ncw->ckw", hot, part), alpha=1 - self.decay)
                used = counts > 1e-3  # a key that nothing is near stays where it was
                keys = torch.where(used[..., None], sums / counts.clamp_min(1e-3)[..., None], keys)
        return keys

    def place(self, base: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> LookUpLinear:
        _, outputs = matrix.sizes(base)
        begun = tensors.get("values")
        if begun is None:
            begun = tensors["keys"].new_zeros(self.codebooks, self.keys, outputs)
        return LookUpLinear(base, tensors["projection"], tensors["keys"], begun)

    def shape(self) -> str:
        return f"{self.codebooks} codebooks of {self.keys} keys"
