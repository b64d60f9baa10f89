"""LoLCATs: attention of a trained model as a window and a state, its feature maps trained to what attention computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.contract import cost
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import Count, Positive, Whole, method
from shoestring.surgery.edits.supra import converting
from shoestring.surgery.observe import Walk

Asked = tuple[Tensor, Tensor, Tensor]
"""What a token mixer was given: x [B, T, width], and the tables of positions."""


@method(
    "surgery",
    kind="edit",
    name="lolcats",
    paper="LoLCATs: On Low-Rank Linearizing of Large Language Models, arXiv:2410.10254",
    claim="with LoRA after it, trains 0.2 % of the parameters on 0.4 % of the tokens of earlier conversions, and is 20 points and "
    "more better on 5-shot MMLU than those at 8B",
    cost="two forward passes over the calibration text; `steps` passes of each converted layer's attention, forward and backward",
)
class LoLCATs:
    """Some layers of a model become softmax attention over a window and linear attention over all before it.

    Michael Zhang et al., 2024, arXiv:2410.10254. The token mixer `lolcats` has the formula; its projections are the model's. The
    feature maps are trained here, layer by layer, each layer reading what the softmax layers below it make of the text:

        min over W_q, W_k, mix of 1000 mean (y_softmax - y_lolcats)²,    y before the output's projection

    by AdamW without decay. That is the first stage of the paper. Its second is LoRA on the converted model: the edit `lora` after
    this one, and a run that trains. With steps = 0 the maps stay as drawn.

    Different from the paper: no schedule that waits for a plateau; with `at`, some layers may stay as they are (a hybrid).

    at: the layers, as a pattern of [model] names them; ':' is all.
    features: of each of the two halves of a head's features. window: tokens that are attended to exactly.
    steps: of a layer, one batch of the calibration text each. lr: of them.
    """

    def __init__(
        self,
        *,
        at: str = ":",
        features: Annotated[int, Interval(ge=1, le=1024)] = 64,
        window: Count = 64,
        steps: Whole = 100,
        lr: Positive = 0.01,
    ) -> None:
        self.at, self.steps, self.lr = at, steps, lr
        self.options = {"features": features, "window": window}
        self.needs = frozenset({"text"} if steps else ())

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The feature maps. Raises: UsageError without text, for a model that is not native, or layers without plain attention."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(evidence.seed)
            made: dict[int, Any] = converting(model, "lolcats").mixers_from_attention(self.at, "lolcats", self.options)
        errors, spent = {}, Charge()
        if self.steps:
            walk, last, asked = Walk(model, evidence.text), max(made), list[Asked]()
            charges: list[Charge] = []

            def learn(number: int) -> None:
                if number in made:
                    errors[str(number)], taken = self._transfer(made[number], asked, evidence.text)
                    charges.append(taken)
                    asked.clear()

            mixers = [model.get_submodule(f"{model.anatomy().layers[number]}.token_mixer") for number in made]
            with _noting(mixers, asked):
                for number, _ in enumerate(walk):
                    learn(number - 1)  # coming to a layer, the walk has gone through the one before
                    if number == last:
                        walk.run()
                        learn(number)
                        break
            spent = sum(charges, walk.spent)
        tensors = {f"{number}.{name}": value for number, mixer in made.items() for name, value in _own(mixer).items()}
        return Decision({"errors": errors}, tensors, spent)

    def _transfer(
        self, mixer: Any, asked: Sequence[Asked], text: Sequence[Batch]
    ) -> tuple[tuple[float, float], Charge]:
        """Train the maps of one mixer. Returns (its mean squared error by that of answering 0, before and after; what it took)."""
        mixer.to(asked[0][0].device)
        trained = [parameter.data.float() for parameter in _own(mixer).values()]
        for name, value in zip(_own(mixer), trained, strict=True):
            part, _, leaf = name.rpartition(".")
            setattr(mixer.get_submodule(part), leaf, nn.Parameter(value))
        optimizer = torch.optim.AdamW(list(_own(mixer).values()), self.lr, weight_decay=0.0)
        flops, before, after = 0, 0.0, 0.0
        read = []
        with torch.no_grad():
            for given, batch in zip(asked, text, strict=True):
                q, k, v = mixer.projected(*given)
                read.append((q, k, v, _softmax(q, k, v, batch.inputs), batch.inputs.documents))
                flops += cost.linear(mixer.qkv, q.shape[0] * q.shape[1])
                flops += cost.attention(q.shape[0], q.shape[2], q.shape[1], q.shape[1], q.shape[3])
        for step in range(self.steps + len(text)):
            # the steps, and then all of the text once more, without training
            q, k, v, wanted, documents = read[step % len(text)]
            learning = step < self.steps
            with torch.set_grad_enabled(learning):
                error = F.mse_loss(mixer.mixed(q, k, v, documents).float(), wanted.float())
            relative = float(error.detach() / wanted.float().square().mean().clamp_min(1e-12)) / len(text)
            if learning:
                before += relative if step < len(text) else 0.0
                optimizer.zero_grad()
                (1000 * error).backward()
                optimizer.step()
            else:
                after += relative
            flops += mixer.mixed_flops(Shape(q.shape[0], q.shape[1], backward=learning), False)
        return (before, after), Charge(flops=flops)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with the mixers, and the maps that were trained."""
        with torch.random.fork_rng(devices=[]):
            made = converting(model, "lolcats").convert_attention(self.at, "lolcats", self.options)
        with torch.no_grad():
            for number, mixer in made.items():
                for name, value in _own(mixer).items():
                    value.copy_(decision.tensors[f"{number}.{name}"])
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        said = (
            f"lolcats: layers {self.at} attend to {self.options['window']} tokens exactly, and to the rest by a state"
        )
        pairs = list(decision.values["errors"].values())
        if not pairs:
            return f"{said}; their maps are as drawn"
        before, after = (sum(pair[place] for pair in pairs) / len(pairs) for place in (0, 1))
        return f"{said}; after {self.steps} steps a layer, they miss {after:.1%} of what attention writes ({before:.1%} at first)"


def _own(mixer: Any) -> dict[str, Tensor]:
    """The parameters that a mixer has beside those of attention, by name."""
    return {
        name: value
        for name, value in mixer.named_parameters()
        if name.startswith(("query_map.", "key_map.")) or name == "mix"
    }


@contextmanager
def _noting(mixers: Sequence[nn.Module], asked: list[Asked]) -> Iterator[None]:
    """While the block runs, note what each of these token mixers is given, a batch each."""

    def keep(_: object, given: tuple[Any, ...]) -> None:
        asked.append((given[0].detach(), given[1], given[2]))

    handles = [mixer.register_forward_pre_hook(keep) for mixer in mixers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _softmax(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
    """[B, T, H, d]: what softmax attention makes of [B, T, H or Hk, d]."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    mask, documents = None, inputs.documents
    if documents is not None:
        documents = documents.to(q.device)
        length = inputs.length
        causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        mask = ((documents[:, :, None] == documents[:, None]) & causal)[:, None]
    made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return made.transpose(1, 2)
