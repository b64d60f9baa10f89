"""A model's first layers, with a second residual stream that runs ahead of the first; and how that stream is trained."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import About, Depth, LanguageModel, Reading
from shoestring.decode.depth import Through
from shoestring.decode.made_files import expect, read_made, write_made
from shoestring.errors import UsageError

NAME = "m2r2"


class Accelerators(nn.Module):
    """Of layer i, a low-rank change of the fast stream: U_i silu(V_i norm(p)).

    layers, width: of the model. rank: between V and U.
    """

    def __init__(self, layers: int, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(layers, rank, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(layers, width, rank))

    def forward(self, layer: int, fast: Tensor) -> Tensor:
        """[..., width], of the fast stream [..., width] that enters a layer."""
        normed = F.rms_norm(fast, fast.shape[-1:])
        return F.silu(normed @ self.down[layer].T) @ self.up[layer].T

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.down.shape[0]


class Accelerated:
    """The first k layers of a model as a `LanguageModel` of its own, whose head reads a fast stream.

        p_0 = h_0,   p_{i+1} = p_i + (h_{i+1} - h_i) + U_i silu(V_i norm(p_i)),   i = 0 .. k - 1

    h_i is what enters layer i of the model. The fast stream reads the slow one, which goes on untouched, so keys and values are
    the model's own. With U = 0 the head reads h_k: plain early exit. The model's last norm and head make logits of p_k.

    target: a native model. accelerators: of its first k layers.
    Raises: UsageError for a model that is not native, or has no layer more than k.
    """

    def __init__(self, target: LanguageModel, accelerators: Accelerators) -> None:
        total, own = target.about.layers, accelerators.layers
        if not all(hasattr(target, name) for name in ("blocks", "embedding", "norm", "config")):
            raise UsageError(
                "m2r2 needs a native model, or a bridged one: only these can end after some of their layers"
            )
        if not 0 < own < total:
            raise UsageError(
                f"m2r2: {own} of {total} layers are no part of a model: it has at least one layer and leaves one out"
            )
        self.target, self.accelerators = target, accelerators
        self._depth = Through(frozenset(range(own)))
        self._names = ("embedding", *(f"blocks.{layer}" for layer in range(own)))

    @classmethod
    def read_from(cls, path: Path, target: LanguageModel) -> "Accelerated":
        """Of the accelerators in a file. Raises: UsageError where they do not suit the model."""
        tensors, _ = read_made(path, NAME)
        width = target.about.width
        expect(path, tensors, {"down": (-1, -1, width), "up": (-1, width, -1)})
        layers, rank, _ = tensors["down"].shape
        made = Accelerators(layers, width, rank)
        expect(path, tensors, {name: tuple(weight.shape) for name, weight in made.named_parameters()})
        made.load_state_dict(tensors)
        return cls(target, made.requires_grad_(False).eval().to(target.device))

    def save(self, path: Path) -> None:
        """Write what `read_from` reads."""
        write_made(path, NAME, {name: weight.detach() for name, weight in self.accelerators.named_parameters()})

    @property
    def about(self) -> About:
        """Its sizes."""
        about = self.target.about
        return About(about.vocabulary, about.context, about.width, self.accelerators.layers)

    @property
    def device(self) -> torch.device:
        return self.target.device

    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """As `LanguageModel.read`. Raises: UsageError for taps and depths, which it has of its own."""
        if tap or depth is not None:
            raise UsageError("the first layers of a model have no taps and no depth beside their own")
        reading = self.target.read(inputs, cache, tap=self._names, depth=self._depth)
        config, norm = self.target.config, self.target.norm  # type: ignore[attr-defined]
        slow = [reading.tapped[name] for name in self._names]
        if config.input_scale != 1:
            slow[0] = slow[0] * config.input_scale
        hidden = norm(self.fast(slow))
        hidden = hidden if config.output_scale == 1 else hidden * config.output_scale
        cost = reading.cost.beside(Cost(self._flops(hidden.shape[0] * hidden.shape[1]), self._bytes, self._bytes))
        return Reading(hidden, reading.head, cost)

    def fast(self, slow: Sequence[Tensor]) -> Tensor:
        """p_k [..., width], of h_0 .. h_k."""
        stream = slow[0].to(self.accelerators.down.dtype)
        for layer in range(self.accelerators.layers):
            stream = stream + (slow[layer + 1] - slow[layer]) + self.accelerators(layer, stream)
        return stream.to(slow[0].dtype)

    def _flops(self, places: int) -> int:
        return 2 * places * sum(weight.numel() for weight in self.accelerators.parameters())

    @property
    def _bytes(self) -> int:
        return sum(weight.nbytes for weight in self.accelerators.parameters())

    def new_cache(self, rows: int, room: int) -> Cache:
        """An empty cache of these layers alone."""
        cache = self.target.new_cache(rows, room)
        del cache.layers[self.accelerators.layers :]
        return cache

    def cost(self, shape: Shape) -> Cost:
        """As `LanguageModel.cost`, forward alone. Its part of the model's layers is taken as their share of all."""
        whole, about = self.target.cost(shape._replace(outputs=0)), self.target.about
        share, added = self.accelerators.layers / about.layers, self._bytes
        head = 2 * shape.head_places * about.width * about.vocabulary
        flops = round(whole.flops * share) + self._flops(shape.tokens) + head
        return Cost(flops, round(whole.moved * share) + added, round(whole.held * share) + added)


def train_accelerators(
    model: LanguageModel,
    texts: Sequence[Tensor],
    *,
    layers: int,
    rank: int = 16,
    epochs: int = 1,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> tuple[Accelerated, list[float], Charge]:
    """Train a fast stream so that its head says what the whole model says; the model stays as it is. Returns (the first layers with
    it, loss of each batch, what it took).

        L = mean_t KL(softmax(z_t) || softmax(z'_t)),   z of the whole model, z' of p_k

    texts: batches [B, T] of token ids. layers: k. rank: of the accelerators.
    """
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    made = Accelerated(model, Accelerators(layers, model.about.width, rank).to(model.device))
    torch.random.set_rng_state(before)
    charge, losses = NOTHING, list[float]()
    solver = torch.optim.AdamW(made.accelerators.parameters(), lr=learning_rate, weight_decay=0.0)
    count = epochs * len(texts)
    schedule = torch.optim.lr_scheduler.LambdaLR(solver, lambda at: 1 - 0.9 * at / max(count, 1))
    for _ in range(epochs):
        for tokens in texts:
            inputs = Inputs(tokens.to(model.device))
            with torch.no_grad():
                whole = model.read(inputs)
                goal = whole.logits().flatten(0, -2).float().log_softmax(-1)
            reading = made.read(inputs)
            said = reading.logits().flatten(0, -2).float().log_softmax(-1)
            loss = F.kl_div(said, goal, log_target=True, reduction="batchmean")
            solver.zero_grad()
            loss.backward()
            solver.step()
            schedule.step()
            losses.append(float(loss.detach()))
            places = tokens.numel()
            # back through the head to the stream; the layers take no gradient
            head = 4 * reading.head.flops(places) - reading.head.flops(places)
            flops = whole.cost.flops + reading.cost.flops + head + 2 * made._flops(places)
            charge += Charge(flops=flops, tokens=places, moved=whole.cost.moved + reading.cost.moved, calls=2)
    made.accelerators.requires_grad_(False).eval()
    return made, losses, charge
