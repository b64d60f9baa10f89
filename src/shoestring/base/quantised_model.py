"""A Transformer whose matrices are packed, the embedding and the head among them, and of which no float copy is kept."""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from shoestring.contract.model import Head
from shoestring.kernels import gather
from shoestring.model.transformer import Transformer, rotary_tables
from shoestring.tune.matrix import bias_of, plain, weight_of


def is_packed(module: nn.Module) -> bool:
    """Whether a layer keeps its matrix packed."""
    return bool(getattr(module, "constant", False))


TABLES = ("packed", "weight")
"""Names of buffers that hold packed matrices."""


class PackedHead(NamedTuple):
    """A `Head` whose matrix is packed: it has no weight in floating point.

    table: a module with `logits`, `in_features` and `out_features`.
    """

    table: Any
    weight: None = None

    def logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.table.logits(hidden)
        return found

    def flops(self, places: int) -> int:
        return 2 * places * int(self.table.out_features) * int(self.table.in_features)


class QuantisedTransformer(Transformer):
    """A `Transformer` whose matrices are modules that keep them packed. They take no gradients; adapters beside them do.

    Whoever makes one puts these in their places and then calls `ready`. Activations are float32, on the CPU.

    Tokens go through all blocks in one native call where there is one for their parts (`Transformer.native`), else module by
    module. Their floating-point sums are not in the same order.
    """

    def ready(self) -> Self:
        """The model, once its weights are in place, with the tables that are no weights; in evaluation mode. What is packed is
        moved together, where it is read faster (`kernels.gather`)."""
        self.rotary = rotary_tables(self.config)
        packed = [
            (module, name)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name in TABLES and not isinstance(module, nn.Linear | nn.Embedding)
        ]
        for (module, name), moved in zip(packed, gather([getattr(m, n) for m, n in packed]), strict=True):
            setattr(module, name, moved)
        return self.requires_grad_(False).eval()

    @torch.no_grad()
    def unpacked(self) -> Self:
        """The model with plain layers of the same numbers in the place of packed ones, also of those with adapters beside."""
        done = list[str]()
        for name, module in list(self.named_modules()):
            if not is_packed(module) or any(name.startswith(f"{outer}.") for outer in done):
                continue
            done.append(name)
            if hasattr(module, "num_embeddings") and name != "head":
                made: nn.Module = nn.Embedding(module.num_embeddings, module.embedding_dim, device="meta")
                made.weight = nn.Parameter(weight_of(module))
            else:
                made = plain(module, weight_of(module), bias_of(module))
            self.set_submodule(name, made.requires_grad_(False).train(module.training))
        self.changed()
        return self

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.norm.weight.dtype
        return found

    @property
    def device(self) -> torch.device:
        found: torch.device = self.norm.weight.device
        return found

    def table_head(self) -> Head:
        table: Any = self.get_output_embeddings()
        return PackedHead(table) if hasattr(table, "logits") else super().table_head()
