"""How a model and its batches are divided among processes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from shoestring.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Precision = Literal["float32", "bfloat16"]

Processes = Annotated[int, Interval(ge=1, le=65536)]

AXES = ("data", "fsdp", "tensor")
"""The dimensions of the mesh of processes; neighbours in rank are neighbours in the last."""


@dataclass(frozen=True)
class ParallelLayout:
    """The [parallel] section: data x fsdp x tensor processes train one model, and are one worker.

    data: copies of the model; each reads its part of every batch, and gradients are summed by all-reduce.
    fsdp: processes that divide weights, gradients and optimiser state among them, and each batch too (`fully_shard`).
    tensor: processes that divide the heads and the hidden features of each layer, and read the same rows (DTensor).
    precision: in which `fsdp` gathers the weights of layers; their gradients are summed in float32, and what is kept is float32.
    checkpointing: 'layers' keeps the inputs of each layer alone, and computes the rest again in the backward pass; 'products' keeps
    what products of matrices and attention give too, and computes what is cheap again.
    """

    data: Processes = 1
    fsdp: Processes = 1
    tensor: Processes = 1
    checkpointing: Literal["none", "layers", "products"] = "none"
    precision: Precision = "float32"

    @property
    def processes(self) -> int:
        """Processes of one model."""
        return self.data * self.fsdp * self.tensor

    @property
    def parts(self) -> int:
        """Into how many parts a batch is divided."""
        return self.data * self.fsdp

    def part(self, rank: int) -> int:
        """Which part of a batch the process of this rank reads."""
        return rank // self.tensor

    def mesh(self, device: str = "cpu") -> "DeviceMesh":
        """The processes of torch's default group, [data, fsdp, tensor]. Raises: UsageError where they are another number."""
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        found = dist.get_world_size() if dist.is_initialized() else 1
        if found != self.processes:
            raise UsageError(
                f"parallel: data {self.data} x fsdp {self.fsdp} x tensor {self.tensor} takes {self.processes} processes, "
                f"and {found} were started"
            )
        return init_device_mesh(device, (self.data, self.fsdp, self.tensor), mesh_dim_names=AXES)
