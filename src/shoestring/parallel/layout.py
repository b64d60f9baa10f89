"""How a model and its batches are divided among processes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from shoestring.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Precision = Literal["float32", "bfloat16"]

Processes = Annotated[int, Interval(ge=1, le=65536)]

AXES = ("data", "fsdp", "context", "tensor")
"""The dimensions of the mesh of processes; neighbours in rank are neighbours in the last."""


@dataclass(frozen=True)
class ParallelLayout:
    """The [parallel] section: data x fsdp x context x tensor processes train one model, and are one worker.

    data: copies of the model; each reads its part of every batch, and gradients are summed by all-reduce.
    fsdp: processes that divide weights, gradients and optimiser state among them, and each batch too (`fully_shard`).
    tensor: processes that divide the heads and the hidden features of each layer, and read the same rows (DTensor).
    context: processes that divide the places of each row, and pass keys and values around (ring attention).
    expert: processes that divide the experts of each `moe` layer, out of the data x fsdp that read different rows.
    precision: in which `fsdp` gathers the weights of layers; their gradients are summed in float32, and what is kept is float32.
    checkpointing: 'layers' keeps the inputs of each layer alone, and computes the rest again in the backward pass; 'products' keeps
    what products of matrices and attention give too, and computes what is cheap again.

    Raises: ValueError where 'expert' does not divide data x fsdp.
    """

    data: Processes = 1
    fsdp: Processes = 1
    tensor: Processes = 1
    context: Processes = 1
    expert: Processes = 1
    checkpointing: Literal["none", "layers", "products"] = "none"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.parts % self.expert:
            raise ValueError(
                f"parallel.expert = {self.expert}: experts are divided among processes that read different rows, and "
                f"data {self.data} x fsdp {self.fsdp} = {self.parts} do not make groups of {self.expert}"
            )

    @property
    def processes(self) -> int:
        """Processes of one model."""
        return self.data * self.fsdp * self.context * self.tensor

    @property
    def parts(self) -> int:
        """Into how many parts the rows of a batch are divided."""
        return self.data * self.fsdp

    def part(self, rank: int) -> int:
        """Which part of a batch's rows the process of this rank reads."""
        return rank // (self.context * self.tensor)

    def places(self, rank: int) -> dict[str, int]:
        """Where the process of this rank is along each axis of `mesh`, and along 'expert' of `expert_mesh`."""
        found, rest = {"expert": self.part(rank) % self.expert}, rank
        for axis in reversed(AXES):
            rest, found[axis] = divmod(rest, getattr(self, axis))
        return found

    def mesh(self, device: str = "cpu") -> "DeviceMesh":
        """The processes of torch's default group, by `AXES`. Raises: UsageError where they are another number."""
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        found = dist.get_world_size() if dist.is_initialized() else 1
        if found != self.processes:
            raise UsageError(
                f"parallel: data {self.data} x fsdp {self.fsdp} x context {self.context} x tensor {self.tensor} takes "
                f"{self.processes} processes, and {found} were started"
            )
        return init_device_mesh(device, (self.data, self.fsdp, self.context, self.tensor), mesh_dim_names=AXES)

    def expert_mesh(self, device: str = "cpu") -> "DeviceMesh":
        """The same processes, [copy, expert, inner]: those that differ in 'expert' alone divide the experts, and those that differ
        in 'copy' alone have the same ones. All processes call it together."""
        from torch.distributed.device_mesh import init_device_mesh

        shape = (self.parts // self.expert, self.expert, self.context * self.tensor)
        return init_device_mesh(device, shape, mesh_dim_names=("copy", "expert", "inner"))
