"""A head that predicts the tokens after the next one, again and again with the same weights, and how it is trained."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import Head, LanguageModel
from shoestring.decode.made_files import expect, read_made, write_made
from shoestring.errors import UsageError

NAME = "fast_mtp"


class MTPHead(nn.Module):
    """h' = norm(x + W_down silu(W_up norm(x))), x = W [norm(h); norm(e)].

    h [n, width]: the model's hidden state at a place, as its head takes it; or the h' of the step before. e [n, embedding]: the
    embedding of the token after that place. The model's own head makes logits of h', of the token after that.

    width: of hidden states. embedding: of the token embeddings. hidden: between W_up and W_down.
    kept: [K] int64, the tokens that it may draft; None: all.
    """

    def __init__(self, width: int, embedding: int, hidden: int, kept: Tensor | None = None) -> None:
        super().__init__()
        self.hidden_norm, self.token_norm = nn.RMSNorm(width), nn.RMSNorm(embedding)
        self.join = nn.Linear(width + embedding, width, bias=False)
        self.norm = nn.RMSNorm(width)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.last_norm = nn.RMSNorm(width)
        self.kept = kept
        with torch.no_grad():  # it begins as if nothing were new: h' is h, normed
            self.join.weight.zero_()
            self.join.weight[:, :width] = torch.eye(width)
            self.down.weight.zero_()

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """[..., width], of hidden states [..., width] and embeddings [..., embedding]."""
        x = self.join(torch.cat([self.hidden_norm(hidden), self.token_norm(tokens)], dim=-1))
        mixed: Tensor = self.last_norm(x + self.down(F.silu(self.up(self.norm(x)))))
        return mixed

    def logits(self, hidden: Tensor, head: Head) -> Tensor:
        """[..., V] of its own outputs, or [..., K] of the tokens that it keeps."""
        if self.kept is None:
            return head.logits(hidden)
        return head.logits(hidden)[..., self.kept] if head.weight is None else hidden @ head.weight[self.kept].T

    def flops(self, places: int, head: Head) -> int:
        """Operations of a step at so many places, logits included."""
        own = sum(each.weight.numel() for each in (self.join, self.up, self.down))
        if self.kept is not None and head.weight is not None:
            return 2 * places * (own + len(self.kept) * head.weight.shape[1])
        return 2 * places * own + head.flops(places)

    @property
    def moved(self) -> int:
        """Bytes of its weights."""
        return sum(weight.nbytes for weight in self.parameters())

    def save(self, path: Path) -> None:
        """Write what `read` reads."""
        tensors = {name: weight.detach() for name, weight in self.named_parameters()}
        write_made(path, NAME, tensors | ({} if self.kept is None else {"kept": self.kept}))

    @classmethod
    def read(cls, path: Path, model: LanguageModel) -> "MTPHead":
        """The head in a file, in evaluation mode, on the model's device. Raises: UsageError where it does not suit the model."""
        tensors, _ = read_made(path, NAME)
        width, embedding = model.about.width, embedding_of(model).weight.shape[1]
        expect(path, tensors, {"up.weight": (-1, width)})
        made = cls(width, embedding, tensors["up.weight"].shape[0], tensors.pop("kept", None))
        expect(path, tensors, {name: tuple(weight.shape) for name, weight in made.named_parameters()})
        made.load_state_dict(tensors)
        if made.kept is not None and (
            made.kept.dtype != torch.int64 or not 0 <= int(made.kept.max()) < model.about.vocabulary
        ):
            raise UsageError(f"{path}: it keeps tokens that the model does not know")
        return made.requires_grad_(False).eval().to(model.device)


def embedding_of(model: LanguageModel) -> nn.Embedding:
    """The embedding of a model's tokens. Raises: UsageError where it has none."""
    found = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if not isinstance(found, nn.Embedding):
        raise UsageError("multi-token prediction needs a model with a plain embedding of its tokens")
    return found


def frequent(texts: Iterable[Tensor], count: int) -> Tensor:
    """[count] int64: the most frequent tokens of these texts, in the order of their numbers; fewer where there are fewer."""
    seen = Counter(token for text in texts for token in text.flatten().tolist())
    return torch.tensor(sorted(token for token, _ in seen.most_common(count)), dtype=torch.int64)


def step_weights(steps: int, decay: float) -> Tensor:
    """[steps]: decay^(k - 1), made to add up to 1."""
    weights = decay ** torch.arange(steps, dtype=torch.float32)
    return weights / weights.sum()


def unrolled_loss(
    head: MTPHead, model_head: Head, hidden: Tensor, embedded: Tensor, tokens: Tensor, weights: Tensor
) -> Tensor:
    """L = sum_k a_k CE_k: step k reads its own output of step k - 1, as it will when it drafts.

    hidden: [B, T, width] of the model. embedded: [B, T, embedding]. tokens: [B, T]. weights: [K], a_k.
    Raises: UsageError where the texts are too short for the last step.
    """
    steps, length = len(weights), tokens.shape[1]
    if length < steps + 2:
        raise UsageError(f"texts of {length} tokens are too short to predict {steps} steps ahead: give longer ones")
    kept, total = head.kept, hidden.new_zeros(())
    for step in range(1, steps + 1):
        # place t has read the tokens up to t + step, and predicts the next
        places = length - step - 1
        hidden = head(hidden[:, :places], embedded[:, step : step + places])
        goals = tokens[:, step + 1 :].contiguous()
        if kept is not None:
            at = torch.searchsorted(kept, goals).clamp_max(len(kept) - 1)
            goals = torch.where(kept[at] == goals, at, -100)  # what it does not keep, it need not predict
        logits = head.logits(hidden, model_head).flatten(0, -2).float()
        if (goals >= 0).any():
            total = total + weights[step - 1] * F.cross_entropy(logits, goals.flatten(), ignore_index=-100)
    return total


def train_head(
    model: LanguageModel,
    texts: Sequence[Tensor],
    *,
    steps: int = 3,
    decay: float = 0.6,
    hidden: int | None = None,
    keep: int | None = None,
    epochs: int = 1,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> tuple[MTPHead, list[float], Charge]:
    """Train a head on texts that the model wrote itself; the model stays as it is. Returns (head, loss of each batch, what it
    took).

    texts: batches [B, T] of token ids.
    steps: K, tokens ahead. decay: of the weight of a step. hidden: between W_up and W_down; None: four times the width.
    keep: how many of the most frequent tokens it may draft; None: all.
    """
    table, charge = embedding_of(model), NOTHING
    torch_seed = torch.random.get_rng_state()
    torch.manual_seed(seed)
    head = MTPHead(
        model.about.width,
        table.weight.shape[1],
        hidden or 4 * model.about.width,
        None if keep is None else frequent(texts, keep),
    ).to(model.device)
    torch.random.set_rng_state(torch_seed)
    weights, losses = step_weights(steps, decay), list[float]()
    count = epochs * len(texts)
    solver = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(solver, lambda at: 1 - 0.9 * at / max(count, 1))
    for _ in range(epochs):
        for tokens in texts:
            tokens = tokens.to(model.device)
            with torch.no_grad():
                reading = model.read(Inputs(tokens))
                states, embedded = reading.hidden.float(), table(tokens).float()
            loss = unrolled_loss(head, reading.head, states, embedded, tokens, weights)
            solver.zero_grad()
            loss.backward()
            solver.step()
            schedule.step()
            losses.append(float(loss.detach()))
            places = tokens.numel()
            own = 3 * steps * head.flops(places, reading.head)
            charge += Charge(flops=reading.cost.flops + own, tokens=places, moved=reading.cost.moved, calls=1)
    return head.requires_grad_(False).eval(), losses, charge
