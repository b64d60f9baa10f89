"""What a stage does with micro-batches: forward for all, then backward for all (GPipe), each along its own route.

GPipe: Huang et al. (2019), GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism, arXiv:1811.06965.
A stage acts on frames as they come. A frame that belongs to a newer attempt at a step ends the older one; a frame of
an older attempt is dropped: that is all it takes to give up a step whose stage was lost.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from shoestring.sync.pipeline.part import ModelPart
from shoestring.sync.pipeline.route import owner
from shoestring.sync.pipeline.wire import Frame

Send = Callable[[int, Frame, str], None]
"""Of a stage, a frame and the role that its bytes are counted under."""


class Passes:
    """The micro-batches of the present attempt at this stage.

    send: to another stage.
    ready: is called once an attempt, when every part here has the gradient of all micro-batches, with the losses by
    micro-batch where this is the last stage.
    """

    def __init__(
        self,
        stage: int,
        stages: int,
        parts: Mapping[int, ModelPart],
        send: Send,
        ready: Callable[[int, list[float]], None],
    ) -> None:
        self.stage, self.stages, self.parts, self.send, self.ready = stage, stages, parts, send, ready
        self.order = 0
        self._begin(0)

    def take(self, frame: Frame) -> None:
        """Act on a frame: 'forward' (x for a part), 'targets' (for the loss) or 'backward' (the gradient of what a part
        made). Its fields: micro, the number of the micro-batch; part; and on the way forward its route, the number
        of micro-batches and its share of the batch."""
        if frame.order < self.order:
            return
        if frame.order > self.order:
            self._begin(frame.order)
        micro = frame.fields["micro"]
        if frame.kind == "targets":
            self._targets[micro] = frame.tensors["x"]
            self._lose(micro)
        elif frame.kind == "forward":
            self._plans[micro] = frame.fields
            self._forward(micro, frame.fields["part"], frame.tensors["x"])
        else:
            self._backward(micro, frame.fields["part"], frame.tensors["x"])

    def _begin(self, order: int) -> None:
        self.order = order
        self._plans: dict[int, Mapping[str, Any]] = {}
        self._hidden: dict[int, Tensor] = {}
        self._targets: dict[int, Tensor] = {}
        self._losses: dict[int, float] = {}
        self._reported = False
        for part in self.parts.values():
            part.begin()

    def _forward(self, micro: int, number: int, x: Tensor) -> None:
        plan = self._plans[micro]
        if number == self.stages + 1:
            self._hidden[micro] = x
            self._lose(micro)
            return
        following = plan["route"][plan["route"].index(number) + 1]
        made = self.parts[number].forward(micro, x)
        self._deliver(Frame("forward", self.order, {**plan, "part": following}, {"x": made}), "activation")

    def _lose(self, micro: int) -> None:
        """The loss of a micro-batch whose hidden states and targets are both here; behind the last one, all go back."""
        if micro not in self._hidden or micro not in self._targets:
            return
        number = self.stages + 1
        loss = self.parts[number].forward(micro, self._hidden.pop(micro), self._targets.pop(micro))
        self._losses[micro] = float(loss)
        if len(self._losses) == self._plans[micro]["micros"]:
            for each in range(len(self._losses)):
                share = torch.tensor(self._plans[each]["share"], dtype=loss.dtype, device=loss.device)
                self._backward(each, number, share)

    def _backward(self, micro: int, number: int, gradient: Tensor) -> None:
        for turn, entering in self.parts[number].backward(micro, gradient):
            if entering is not None:
                route = self._plans[turn]["route"]
                fields = {"micro": turn, "part": route[route.index(number) - 1]}
                self._deliver(Frame("backward", self.order, fields, {"x": entering}), "gradient")
        micros = self._plans[micro]["micros"]
        if not self._reported and all(part.finished == micros for part in self.parts.values()):
            self._reported = True
            self.ready(self.order, [self._losses[each] for each in sorted(self._losses)])

    def _deliver(self, frame: Frame, role: str) -> None:
        stage = owner(frame.fields["part"], self.stages)
        if stage == self.stage:
            self.take(frame)
        else:
            self.send(stage, frame, role)
