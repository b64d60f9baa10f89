"""Small routers that say of each layer whether a text skips, executes or repeats it, and how they are trained."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import Depth, LanguageModel
from shoestring.decode.made_files import expect, read_made, write_made
from shoestring.errors import UsageError

NAME = "dr_llm"
ACTIONS = 3
"""Skip, execute, repeat: the number of the action is how often the layer is applied."""


class LayerRouters(nn.Module, Depth):
    """Of layer l, logits = mean over windows of W2 gelu(W1 norm(h)), h the mean hidden state of a window. [ACTIONS]

    A text of T tokens has min(T, windows) windows of nearly equal size. layers, width: of the model. hidden: between W1 and W2.
    """

    def __init__(self, layers: int, width: int, hidden: int = 32, windows: int = 8) -> None:
        super().__init__()
        self.windows = windows
        self.first = nn.Parameter(torch.randn(layers, hidden, width) / width**0.5)
        self.second = nn.Parameter(torch.zeros(layers, ACTIONS, hidden))
        self.bias = nn.Parameter(torch.zeros(layers, ACTIONS))

    def forward(self, layer: int, hidden: Tensor) -> Tensor:
        """[ACTIONS], of the hidden states [T, width] that enter a layer."""
        parts = torch.stack([part.mean(0) for part in hidden.float().tensor_split(min(len(hidden), self.windows))])
        normed = F.rms_norm(parts, parts.shape[-1:])
        scores: Tensor = F.gelu(normed @ self.first[layer].T) @ self.second[layer].T + self.bias[layer]
        return scores.mean(0)

    def times(self, layer: int, hidden: Tensor) -> int:
        """As `contract.model.Depth.times`, for one text. Raises: UsageError for several."""
        if len(hidden) != 1:
            raise UsageError("layer routers choose for one text at a time: read them one by one")
        return int(self(layer, hidden[0]).argmax())

    def save(self, path: Path) -> None:
        """Write what `read` reads."""
        tensors = {name: weight.detach() for name, weight in self.named_parameters()}
        write_made(path, NAME, tensors, windows=self.windows)

    @classmethod
    def read(cls, path: Path, model: LanguageModel) -> "LayerRouters":
        """The routers in a file. Raises: UsageError where they do not suit the model."""
        tensors, values = read_made(path, NAME)
        about, windows = model.about, values.get("windows")
        expect(path, tensors, {"first": (about.layers, -1, about.width)})
        if not isinstance(windows, int) or windows < 1:
            raise UsageError(f"{path}: windows = {windows!r} is no number of windows")
        made = cls(about.layers, about.width, tensors["first"].shape[1], windows)
        expect(path, tensors, {name: tuple(weight.shape) for name, weight in made.named_parameters()})
        made.load_state_dict(tensors)
        return made.requires_grad_(False).eval().to(model.device)


class FixedDepth(Depth):
    """A `contract.model.Depth` that applies each layer so often, and notes what enters it. times_: by layer."""

    def __init__(self, times_: Sequence[int]) -> None:
        self.chosen = tuple(times_)
        self.entered: dict[int, Tensor] = {}

    def times(self, layer: int, hidden: Tensor) -> int:
        """As it was told."""
        self.entered[layer] = hidden.detach()
        return self.chosen[layer]


@dataclass
class _Node:
    """A configuration. value: sum of the rewards below it. visits: how many. children: by what they change."""

    times: tuple[int, ...]
    value: float = 0.0
    visits: int = 0
    children: list["_Node"] = field(default_factory=list)
    untried: list[tuple[int, int]] = field(default_factory=list)


def search(
    layers: int,
    score: Callable[[tuple[int, ...]], float],
    *,
    rollouts: int = 100,
    price: float = 0.1,
    most: float = 1.25,
    explore: float = 1.0,
    seed: int = 0,
) -> tuple[tuple[int, ...], int]:
    """Monte Carlo tree search for how often to apply each layer: (the best found, configurations that were scored).

    A step down the tree changes one layer, to be skipped or repeated; it is chosen by UCB1, value / visits + explore sqrt(ln N /
    visits), N of its parent. The reward is score - price x (layers applied) / layers. Of all that score at least as the whole model
    does, the one with the highest score, and then the fewest layers, is returned.

    score: how right the model is with a configuration. most: layers applied, at most, as a share of all.
    """
    chance, known = random.Random(seed), dict[tuple[int, ...], float]()

    def scored(times: tuple[int, ...]) -> float:
        if times not in known:
            known[times] = score(times)
        return known[times]

    def opened(times: tuple[int, ...]) -> _Node:
        changes = [(at, action) for at in range(layers) if times[at] == 1 for action in (0, 2)]
        chance.shuffle(changes)
        return _Node(times, untried=changes)

    root = opened((1,) * layers)
    scored(root.times)
    for _ in range(rollouts):
        path = [root]
        while not path[-1].untried and path[-1].children:
            above = path[-1]
            total = math.log(above.visits)
            path.append(
                max(
                    above.children, key=lambda node: node.value / node.visits + explore * math.sqrt(total / node.visits)
                )
            )
        last = path[-1]
        while last.untried:
            at, action = last.untried.pop()
            times = (*last.times[:at], action, *last.times[at + 1 :])
            if 0 < sum(times) <= most * layers:
                child = opened(times)
                last.children.append(child)
                path.append(child)
                break
        reward = scored(path[-1].times) - price * sum(path[-1].times) / layers
        for node in path:
            node.value, node.visits = node.value + reward, node.visits + 1
    whole = known[root.times]
    able = [times for times, value in known.items() if value >= whole]
    return min(able, key=lambda times: (-known[times], sum(times), times)), len(known)


def focal_loss(logits: Tensor, actions: Tensor, weights: Tensor, focus: float) -> Tensor:
    """-mean_i w_{a_i} (1 - p_i)^focus log p_i, p_i the probability of action a_i. logits: [n, ACTIONS]. weights: [ACTIONS]."""
    log_p = logits.log_softmax(-1).gather(-1, actions[:, None])[:, 0]
    return -(weights[actions] * (1 - log_p.exp()) ** focus * log_p).mean()


def balanced(actions: Tensor, decay: float = 0.99) -> Tensor:
    """[ACTIONS]: (1 - decay) / (1 - decay^n), n the actions of a kind; made to have a mean of 1 over the kinds that are there."""
    counts = torch.bincount(actions, minlength=ACTIONS).double()
    weights = torch.where(counts > 0, (1 - decay) / (1 - decay ** counts.clamp_min(1)), 0.0)
    return (weights / weights[counts > 0].mean()).float()


def train_routers(
    model: LanguageModel,
    examples: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    hidden: int = 32,
    windows: int = 8,
    steps: int = 200,
    learning_rate: float = 1e-2,
    focus: float = 2.0,
    seed: int = 0,
) -> tuple[LayerRouters, list[float], Charge]:
    """Train routers on (text, how often to apply each layer), as `search` finds it; the model stays as it is. Returns (routers,
    loss of each step, what it took). focus: of the focal loss."""
    if not examples:
        raise UsageError("routers need texts with the layers to apply: search for some first")
    charge, states, actions = NOTHING, list[list[Tensor]](), list[Tensor]()
    for tokens, times in examples:
        noted = FixedDepth(times)
        with torch.no_grad():
            reading = model.read(Inputs(torch.tensor([list(tokens)], device=model.device)), depth=noted)
        charge += Charge(flops=reading.cost.flops, moved=reading.cost.moved, read=len(tokens), calls=1)
        states.append([noted.entered[layer][0] for layer in range(len(times))])
        actions.append(torch.tensor(times))
    about, before = model.about, torch.random.get_rng_state()
    torch.manual_seed(seed)
    routers = LayerRouters(about.layers, about.width, hidden, windows)
    torch.random.set_rng_state(before)
    goals = torch.cat(actions)
    weights, losses = balanced(goals), list[float]()
    solver = torch.optim.Adam(routers.parameters(), lr=learning_rate)
    for _ in range(steps):
        logits = torch.stack([routers(layer, own) for each in states for layer, own in enumerate(each)])
        loss = focal_loss(logits, goals, weights, focus)
        solver.zero_grad()
        loss.backward()
        solver.step()
        losses.append(float(loss.detach()))
        places = sum(min(len(own), windows) for each in states for own in each)
        charge += Charge(flops=6 * places * hidden * (about.width + ACTIONS))
    return routers.requires_grad_(False).eval(), losses, charge
