"""State-space layers as surgery sees them: which rows of their input matrix write x, B and C."""

from typing import NamedTuple

from torch import Tensor, nn

from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError


class StateSpaceLayer(NamedTuple):
    """A layer with axes 'head', 'ssm_channel' and 'ssm_state'.

    number: of the layer. input: the name of the matrix that writes x, B and C, one after the other. start: its first row that does.
    heads, channels, groups, state: sizes.
    """

    number: int
    input: str
    start: int
    heads: int
    channels: int
    groups: int
    state: int

    def weight(self, model: LanguageModule) -> Tensor:
        """[heads channels + 2 groups state, width]: the rows that write x, B and C. Raises: UsageError where they are not plain."""
        matrix = model.get_submodule(self.input)
        if not isinstance(matrix, nn.Linear):
            raise UsageError(f"{self.input} is no plain matrix since an earlier edit: cut first, or fold that edit")
        return matrix.weight.detach()[
            self.start : self.start + self.heads * self.channels + 2 * self.groups * self.state
        ]

    def parts(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x [heads, channels], B [groups, state], C [groups, state]) of a number for each of those rows."""
        inner, each = self.heads * self.channels, self.groups * self.state
        x, b, c = rows.split((inner, each, each))
        return x.view(self.heads, self.channels), b.view(self.groups, self.state), c.view(self.groups, self.state)


def state_space_layers(model: LanguageModule) -> list[StateSpaceLayer]:
    """The state-space layers of a model, in order, as its axes tell of them."""
    anatomy = model.anatomy()
    heads = {axis.layer: axis for axis in anatomy.axes("head")}
    states = {axis.layer: axis for axis in anatomy.axes("ssm_state")}
    found = []
    for axis in anatomy.axes("ssm_channel"):
        own, state = heads[axis.layer], states[axis.layer]
        number = axis.layer
        assert number is not None
        # of the input matrix: the gate, then x, B and C; the state's first rows come right after x
        first = next(one for one in state.slices if one.dim == 0 and one.name.endswith("input.weight"))
        start = first.start - own.size * axis.size
        found.append(
            StateSpaceLayer(
                number, first.name.removesuffix(".weight"), start, own.size, axis.size, own.runs, state.size
            )
        )
    return found
