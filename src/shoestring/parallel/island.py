"""An island: a worker of several processes, sharded within, which exchanges with other islands as any worker does.

The processes of an island divide its outer loop tensor by tensor. Each trained tensor has one owner among them, the same in every
island. Before an exchange the owner gets the whole tensor; it alone keeps the global weights, the momentum and the residual, and it
exchanges with the owners of the same tensor in the other islands, over connections of their own. Afterwards it broadcasts the new
weights within its island. So every codec sees whole tensors, as of a worker that is one process, the payloads on the link between
islands are the same bytes, and no process holds the outer loop's copies of the whole model.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.parallel.json_gather import gather_json
from shoestring.parallel.optimizer import ShardedOptimizer
from shoestring.parallel.region import Part, as_whole
from shoestring.parallel.sharding import Sharded
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.exchange import Averaged
from shoestring.sync.exchange_bytes import exchange_bytes
from shoestring.sync.feedback import PART
from shoestring.sync.flight import Flight, Round
from shoestring.sync.fragments import Fragments, Named


class IslandPart(nn.Module):
    """The tensors of an island that this process owns, whole: what its part of the outer loop reads and sets.

    sharded: the model of the island, whose processes are torch's default group. optimizer: of it. A matrix that the optimiser
    sees whole has the same owner here, which keeps no second copy of it.

    owners: the rank within the island of each trained tensor. wholes: those that this process owns, by name.
    """

    def __init__(self, sharded: Sharded, optimizer: ShardedOptimizer) -> None:
        super().__init__()
        self.sharded, self.optimizer = sharded, optimizer
        self.fragments: list[list[str]] = []
        self.owners: dict[str, int] = {}
        self.wholes: dict[str, nn.Parameter] = {}
        self._received = 0

    def cut(self, fragments: Fragments) -> list[list[Named]]:
        """Cut the island's model, and take the first weights of what this process owns. All of the island call it together."""
        self.sharded.reshard()
        self.fragments = [[name for name, _ in fragment] for fragment in fragments.of(self.sharded.model)]
        self.owners = self._owners()
        for name in self.names:
            if self.owners[name] == self.sharded.rank:
                self.wholes[name] = self._whole_of(name)
        self.fetch(self.names)
        return [[(name, self.wholes[name]) for name in names if name in self.wholes] for names in self.fragments]

    @property
    def names(self) -> list[str]:
        """Of all trained tensors, by fragment."""
        return [name for names in self.fragments for name in names]

    def _owners(self) -> dict[str, int]:
        """The optimiser's own owners first; then the largest tensor to whoever has the least by then."""
        sizes = {name: self.sharded.parameters[name].shape.numel() for name in self.names}
        owners = {name: rank for name, rank in self.optimizer.owners.items() if name in sizes}
        load = [0] * self.sharded.layout.processes
        for name, rank in owners.items():
            load[rank] += sizes[name]
        for name in sorted(sizes.keys() - owners.keys(), key=lambda name: (-sizes[name], name)):
            owners[name] = load.index(min(load))
            load[owners[name]] += sizes[name]
        return owners

    def _whole_of(self, name: str) -> nn.Parameter:
        if name in self.optimizer.owners:
            return self.optimizer.stand_ins[name]
        one = self.sharded.parameters[name]
        return nn.Parameter(torch.empty(one.shape, dtype=one.parameter.dtype, device=one.parameter.device))

    @torch.no_grad()
    def fetch(self, names: Sequence[str]) -> None:
        """Get the island's weights of these tensors to their owners: one after the other. All of the island call it together."""
        for name in names:
            if name in self.optimizer.owners:
                continue  # its owner has it whole since the last step
            one = self.sharded.parameters[name]
            size = one.shape.numel() * one.parameter.element_size()
            whole = one.whole(one.parameter.detach())
            self._received += size - size // one.shards
            if name in self.wholes:
                self.wholes[name].copy_(whole)

    @torch.no_grad()
    def spread(self, names: Sequence[str], values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors from their owners to every process, one after the other. values: by name, of those owned here."""
        for name in names:
            one = self.sharded.parameters[name]
            if name in self.wholes:
                whole = values[name].detach().to(one.parameter.dtype).contiguous()
            else:
                whole = torch.empty(one.shape, dtype=one.parameter.dtype, device=one.parameter.device)
                self._received += whole.numel() * whole.element_size()
            dist.broadcast(whole, self.owners[name])
            yield name, whole

    @torch.no_grad()
    def put(self, names: Sequence[str], values: Mapping[str, Tensor]) -> None:
        """Set the island's weights of these tensors to what their owners have."""
        self.sharded.reshard()
        for name, whole in self.spread(names, values):
            self.sharded.parameters[name].put(whole)

    def received(self) -> int:
        """Bytes that this process received within the island since this was asked last."""
        found, self._received = self._received, 0
        return found

    def bytes_within(self, names: Sequence[str]) -> int:
        """Bytes that this process receives within the island when these tensors are exchanged once."""
        found = 0
        for name in names:
            one = self.sharded.parameters[name]
            size = one.shape.numel() * one.parameter.element_size()
            found += 0 if name in self.optimizer.owners else size - size // one.shards
            found += 0 if name in self.wholes else size
        return found


class IslandDiLoCo(DiLoCo):
    """The part of a `DiLoCo` that one process of an island has. All of the island call each method together.

    model: an `IslandPart`. transport: to the processes of the same rank in the other islands. A round counts where it does so
    for all processes of the island, and an island is left out of a fragment where any part of it is not finite. The figures of a
    `Round` are those of the whole island.
    """

    def __init__(self, model: IslandPart, inner: torch.optim.Optimizer | None = None, **options: Any) -> None:
        self.part = model
        super().__init__(model, inner, **options)

    def step(self, note: Mapping[str, Any] | None = None) -> list[Round]:
        now = self.steps + 1
        due = [fragment for fragment, offset in enumerate(self.offsets) if (now - offset) % self.every == 0]
        merged = [flight.fragment for flight in self.flights if flight.step + self.overlap <= now]
        self._fetch({*due, *merged})
        return self._handed_on(super().step(note))

    def synchronise(self, note: Mapping[str, Any] | None = None) -> list[Round]:
        everything = range(len(self.fragments))
        self._fetch(everything)
        ended = super().synchronise(note)
        self.part.put(self.part.names, self.parameters)
        return ended

    def _fetch(self, fragments: Sequence[int] | set[int] | range) -> None:
        self.part.fetch([name for fragment in sorted(fragments) for name in self.part.fragments[fragment]])

    def _handed_on(self, ended: list[Round]) -> list[Round]:
        for each in ended:
            if each.committed:
                self.part.put(self.part.fragments[each.fragment], self.parameters)
        return ended

    def _start(self, fragment: int, note: Mapping[str, Any]) -> Flight:
        flight = super()._start(fragment, note)
        spoilt = torch.tensor([float(not all(bool(delta.values.isfinite().all()) for delta in flight.deltas))])
        dist.all_reduce(spoilt, op=dist.ReduceOp.MAX)
        if spoilt.item():  # the other processes' tensors of this island are to be left out too
            for delta in flight.deltas:
                delta.values.fill_(torch.nan)
        return flight

    def settled(self, averaged: Averaged) -> Averaged:
        """What came of an exchange in all processes of the island: it counts for none unless for all."""
        told = gather_json(
            {
                "whole": averaged.tensors is not None,
                "exchanged": bool(averaged.notes),
                "notes": averaged.notes,
                "participants": averaged.participants,
                "dropped": averaged.dropped,
                "damaged": averaged.damaged,
                "sent": averaged.sent,
                "received": averaged.received,
                "seconds": averaged.seconds,
                "sent_by_role": dict(averaged.sent_by_role),
            }
        )
        first = next(each for each in told if each["exchanged"])
        roles: Counter[str] = Counter()
        for each in told:
            roles.update(each["sent_by_role"])
        whole = all(each["whole"] for each in told)
        found = replace(
            averaged,
            notes=first["notes"] if whole else [None] * self.transport.size,
            participants=first["participants"],
            dropped=first["dropped"],
            damaged=sorted({rank for each in told for rank in each["damaged"]}),
            sent=sum(each["sent"] for each in told),
            received=sum(each["received"] for each in told),
            seconds=max(each["seconds"] for each in told),
            sent_by_role=roles,
        )
        return found if whole else found.abandoned()

    def finish(self, flight: Flight, averaged: Averaged, exposed: float = 0.0) -> Round:
        ended = super().finish(flight, averaged, exposed)
        if ended.committed and averaged.place[0] not in averaged.participants:
            for name in self.part.fragments[flight.fragment]:  # of each, some process has a state
                self.part.optimizer.forget(self.part.optimizer.stand_ins[name])
        return ended

    @contextmanager
    def global_weights(self) -> Iterator[None]:
        parameters = [self.part.sharded.parameters[name] for name in self.part.names]
        self.part.sharded.reshard()
        local = [one.local().clone() for one in parameters]
        self.part.put(self.part.names, self.weights)
        try:
            yield
        finally:
            self.part.sharded.reshard()
            with torch.no_grad():
                for one, own in zip(parameters, local, strict=True):
                    one.local().copy_(own)

    def global_parts(self) -> dict[str, Part]:
        """The global weights that this process owns, in the model's types."""
        parameters = self.part.sharded.parameters
        return {name: as_whole(own.to(parameters[name].parameter.dtype)) for name, own in self.weights.items()}

    def whole_global_weights(self) -> dict[str, Tensor]:
        """The global weights in the model's types, on the CPU of the island's first process; nothing elsewhere."""
        leads = self.part.sharded.rank == 0
        spread = self.part.spread(self.part.names, self.weights)
        return {name: whole.detach().cpu().clone() for name, whole in spread if leads}

    def load_state_dict(
        self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, reshard: bool = False
    ) -> None:
        """Take this process's part of a state that a worker of any number of processes has kept."""
        own = {key: tensors[key] for key in tensors if self._name_in(key) in self.weights}
        super().load_state_dict(own, values, reshard=reshard)

    def _schedule(self) -> dict[str, Any]:
        return {**super()._schedule(), "fragments": self.part.fragments}

    @staticmethod
    def _name_in(key: str) -> str:
        """The parameter that a tensor of the state is of."""
        kind, _, rest = key.partition(".")
        return (rest.partition(".")[2] if kind == "flight" else rest).removesuffix(PART)

    def predicted_bytes(self, fragment: int) -> int:
        """Bytes that all processes of this island send the other islands in one exchange of a fragment, by formula."""
        sent = 0
        for rank in range(self.part.sharded.layout.processes):
            names = [name for name in self.part.fragments[fragment] if self.part.owners[name] == rank]
            sent += exchange_bytes(
                [self.part.sharded.parameters[name].shape for name in names],
                self.codec,
                rank=self.transport.rank,
                workers=self.transport.size,
                average=self.average,
                average_codec=self.average_codec,
            )
        return sent
