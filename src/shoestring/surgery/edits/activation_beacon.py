"""Activation Beacon: keys and values of a window of tokens give way to those of a few beacons, which learn to stand for them."""

from typing import Any

import torch
from torch import nn

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.attention_rule import ruled
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.method import Count, Whole, method
from shoestring.surgery.beacon_model import STATE, BeaconState, plain, with_beacons
from shoestring.surgery.beacons import BeaconLinear, BeaconPlaces, BeaconRule, place_embedding

PROJECTIONS = ("qkv", "q_proj", "k_proj", "v_proj", "qkv_proj")
"""What the matrices of queries, keys and values are called: here, and by models of transformers."""


@method(
    "surgery",
    kind="edit",
    name="activation_beacon",
    paper="Soaring from 4K to 400K: Extending LLM's Context with Activation Beacon, arXiv:2401.03462",
    claim="Llama 2 7B reads 400k tokens in place of 4k after 10,000 steps on short texts, and short texts as before",
    cost="1/ratio more places in each pass; beside each projection of queries, keys and values one of its size, which is trained",
)
class ActivationBeacon:
    """Read a text in windows; after each come beacons, and only their keys and values stay of the window.

    A window of w tokens has w / ratio beacons. Beacon i sees the beacons of earlier windows, the first (i + 1) ratio tokens of its
    window, and beacons before it; a token sees the beacons of earlier windows, and the tokens before it in its own. Beacons have
    an embedding and projections of queries, keys and values of their own, W + delta with delta at first 0. These alone are
    trained, by the usual loss of the next token. In training the ratio of each window is drawn from `ratios`.

    Positions count what is held: beacons from 0 on, the tokens of a window behind them. A beacon asks from behind its window, and
    is looked at where it stands among beacons. So positions stay below context / ratio + 2 w, and a text of up to w tokens is read
    as before.

    window: w. ratio: when decoding and judging. ratios: of training; each divides w.
    context: tokens of a text from now on; 0: as before.

    What a beacon sees is "stepwise expansion" in the source's words. The source has output projections of beacons too; here they
    share that of tokens. Rows of a batch have one text each, and share what is drawn. A cache holds one text. For models with
    rotary positions. Change the shape of the model before.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        window: Count = 1024,
        ratio: Count = 8,
        ratios: tuple[Count, ...] = (2, 4, 8, 16, 32),
        context: Whole = 0,
    ) -> None:
        for one in (ratio, *ratios):
            if one < 1 or window % one:
                raise UsageError(
                    f"activation_beacon: a window of {window} tokens has no whole number of beacons at a ratio of {one}"
                )
        if not ratios:
            raise UsageError("activation_beacon: ratios are those of training: name one at least")
        self.window, self.ratio, self.ratios, self.context = window, ratio, tuple(ratios), context

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The projections, and the first embedding of beacons. Raises: UsageError where the edit does not fit the model."""
        anatomy = ruled(model, "activation_beacon")
        if any(anatomy.rules()):
            raise UsageError("activation_beacon: layers attend by a rule already: one edit can say how a layer attends")
        layers, names = len(anatomy.attention_sizes()), _projections(model)
        anatomy.turn()
        trained = model.about.context
        context = self.context or trained
        if context // self.ratio + 2 * self.window > trained:
            raise UsageError(
                f"activation_beacon: {context} tokens at a ratio of {self.ratio} and windows of {self.window} need positions "
                f"beyond the {trained} of the model: take smaller windows, or a larger ratio"
            )
        weights = model.get_submodule(model.anatomy().embedding).weight
        drawn = torch.randn(model.about.width, generator=torch.Generator().manual_seed(evidence.seed))
        spread = 1.0 if weights.is_meta else float(weights.detach().float().std())  # type: ignore[operator]
        values = {"layers": layers, "matrices": names, "context": context, "seed": evidence.seed}
        return Decision(values, {"beacon": drawn * spread})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with beacons, everything else frozen."""
        values: Any = decision.values
        anatomy, places = ruled(model, "activation_beacon"), BeaconPlaces()
        model.requires_grad_(False)
        longest = values["context"] + values["context"] // min(self.ratio, *self.ratios) + self.window
        anatomy.extend_context(longest, None)
        turn = anatomy.turn()
        anatomy.set_rules({number: BeaconRule(turn, places) for number in range(values["layers"])})
        for name in values["matrices"]:
            base: Any = model.get_submodule(name)
            model.set_submodule(name, BeaconLinear(base, places))
        embedding: Any = model.get_submodule(model.anatomy().embedding)
        first = decision.tensors["beacon"]
        embedding.beacon = nn.Parameter(first.to(embedding.weight.device, copy=True))
        embedding.beacon_places = places
        embedding.register_forward_hook(place_embedding)
        state = BeaconState(
            places,
            window=self.window,
            ratio=self.ratio,
            ratios=self.ratios,
            context=values["context"],
            seed=values["seed"],
        )
        setattr(model, STATE, state.to(embedding.weight.device))
        model.__class__ = with_beacons(plain(type(model)))
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Raises: UsageError. Beacons are no plain layer."""
        raise UsageError(
            "activation_beacon: beacons among the tokens are more than one matrix can say: there is no plain form"
        )

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return (
            f"activation_beacon: {self.window // self.ratio} beacons for a window of {self.window} tokens; {trained:,} parameters "
            f"are trained, at ratios of {', '.join(map(str, self.ratios))}"
        )

    def before_step(self, model: LanguageModule, at: At) -> Charge:
        """As `Stepped.before_step`: nothing."""
        return NOTHING

    def after_step(self, model: LanguageModule, at: At) -> None:
        """As `Stepped.after_step`: other ratios are drawn."""
        getattr(model, STATE).step.fill_(at.step + 1)


def _projections(model: LanguageModule) -> list[str]:
    """The names of the matrices of queries, keys and values. Raises: UsageError where a layer has none that is known."""
    found = [one for one in model.anatomy().matrices() if one.name.rpartition(".")[2] in PROJECTIONS]
    if len({one.layer for one in found}) < model.about.layers:
        raise UsageError(
            f"activation_beacon: a layer has no matrices of queries, keys and values by a known name: {', '.join(PROJECTIONS)}"
        )
    for one in found:
        if type(model.get_submodule(one.name)) is not nn.Linear:
            raise UsageError(f"activation_beacon: {one.name} is no plain matrix: make this edit the first")
    return [one.name for one in found]
