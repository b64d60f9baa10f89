"""What passes of a native model cost: its operations, the bytes that they move and those that are held."""

import weakref
from functools import cached_property

from torch import Tensor, nn

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import PackedPass, Pass
from shoestring.contract.cost import Cost, Shape, bytes_of, ragged, trains
from shoestring.model.blocks import Blocks
from shoestring.model.stack import token_bytes


class PassCosts:
    """Of one model, with its parts as they are. Made anew where parts were replaced."""

    def __init__(self, model: Blocks) -> None:
        self._model = weakref.ref(model)  # which holds this: a circle would keep its weights until it is found

    @property
    def model(self) -> Blocks:
        found = self._model()
        assert found is not None, "the model is gone, and its costs with it"
        return found

    def whole(self, shape: Shape) -> Cost:
        """Of a pass of this shape, its head and backward pass included."""
        body = self.body(shape)
        # the last norm stands between: a gain that is trained needs no gradient below it, but takes one from above
        spans = any(trains(span) for span in getattr(self.model, "spans", ()))
        inside = shape.backward and (
            spans or trains(self.model.blocks) or self._tokens_train or trains(self.model.norm)
        )
        weight = getattr(self.model.get_output_embeddings(), "weight", None)  # one that is packed has none
        width, narrowing = self.model.config.width, 0
        if self.model.narrows_head:
            width, narrowing = (
                self.model.narrow.inside,
                self.model.narrow.flops(shape.head_places, shape.backward, inside),
            )
            inside = inside or (shape.backward and trains(self.model.narrow))
        products = 1 + (shape.backward and bool(getattr(weight, "requires_grad", False))) + inside
        head = products * 2 * shape.head_places * width * self.model.config.vocabulary
        return body.beside(Cost(head + narrowing))

    def body(self, shape: Shape) -> Cost:
        """As `whole`, without the head's products."""
        inputs, stack = shape.backward and self._tokens_train, self.model.stack
        flops = (
            0
            if self.model.config.embedding is None
            else self.model.narrow.flops(shape.tokens, shape.backward, trains(self.model.embedding))
        )
        if stack is not None:
            flops += stack.flops(shape, inputs)
        for block, count in self._runs if stack is None else ():
            inside = inputs or (shape.backward and trains(block))
            flops += block.flops(shape, inputs)  # type: ignore[operator]
            if count > 1:
                flops += (count - 1) * block.flops(shape, inside)  # type: ignore[operator]
            inputs = inside
        token = self._cache_bytes
        weights, state = self._weight_bytes, shape.rows * self._state_bytes
        held = shape.rows * (shape.past + shape.new) * token + state
        return Cost(flops, weights + shape.rows * shape.past * token + state, weights + held)

    def of_pass(self, inputs: Inputs, coming: Pass | PackedPass | None) -> Cost:
        """Of a pass, its head's products not among it."""
        if isinstance(coming, PackedPass):
            return ragged(self.body, ((one.new, one.held) for one in coming.segments))
        return self.body(Shape(inputs.rows, inputs.length, 0 if coming is None else coming.longest))

    def in_block(self, index: int, inputs: Inputs, coming: Pass | PackedPass | None, places: Tensor | None) -> Cost:
        """Of a pass, in one block. places: at which its channels were mixed; None: at all."""
        if isinstance(coming, PackedPass):
            spans = ((one.new, one.held) for one in coming.segments)
            whole = ragged(lambda shape: self.of_block(index, shape), spans)
        else:
            whole = self.of_block(index, Shape(inputs.rows, inputs.length, 0 if coming is None else coming.longest))
        if places is None:
            return whole
        block, missing = self.model.blocks[index], int((~places).sum())
        unread: int = 0 if missing < places.numel() else block.channel_bytes  # type: ignore[assignment]
        return Cost(whole.flops - missing * block.channel_flops(), whole.moved - unread, whole.held)  # type: ignore[operator]

    def of_block(self, index: int, shape: Shape) -> Cost:
        """Of a pass of this shape, in one block."""
        weights, kept = self._block_bytes[index], shape.rows * self._layer_bytes[index]
        moved, held = kept * shape.past, kept * (shape.past + shape.new)
        return Cost(self.model.blocks[index].flops(shape), weights + moved, weights + held)  # type: ignore[operator]

    @property
    def _tokens_train(self) -> bool:
        """Whether a weight below the first block is trained."""
        return trains(self.model.embedding) or (self.model.config.embedding is not None and trains(self.model.narrow))

    @cached_property
    def _runs(self) -> list[tuple[nn.Module, int]]:
        """The blocks, as runs of equal ones: (the first, how many)."""
        runs: list[tuple[nn.Module, int]] = []
        before = ""
        for block in self.model.blocks:
            kind = f"{block} {[p.requires_grad for p in block.parameters()]}"
            if kind == before:
                runs[-1] = runs[-1][0], runs[-1][1] + 1
            else:
                runs.append((block, 1))
            before = kind
        return runs

    @cached_property
    def _weight_bytes(self) -> int:
        return bytes_of(self.model)

    @cached_property
    def _block_bytes(self) -> list[int]:
        return [bytes_of(block) for block in self.model.blocks]

    @cached_property
    def _layer_bytes(self) -> list[int]:
        """Bytes that a cache holds of one token, of each layer."""
        if self.model.stack is None:
            return [token_bytes(block, self.model.dtype) for block in self.model.blocks]
        return [token for token, _ in self.model.stack.held(self.model.dtype)]

    @cached_property
    def _state_bytes(self) -> int:
        """Bytes that a cache holds of one row, however long it is."""
        if self.model.stack is None:
            return 0
        return sum(state for _, state in self.model.stack.held(self.model.dtype))

    @cached_property
    def _cache_bytes(self) -> int:
        """Bytes that a cache holds of one token."""
        return sum(self._layer_bytes)
