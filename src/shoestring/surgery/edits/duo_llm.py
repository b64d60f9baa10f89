"""Duo-LLM: a small module beside each feed-forward layer of a model that exists."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval

from shoestring.config import Choice
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import NonNegative, method
from shoestring.surgery.channel_swap import gated_hidden, native

Stage = Literal["modules", "router"]


@method(
    "surgery",
    kind="edit",
    name="duo_llm",
    paper="Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models, arXiv:2410.10846",
    claim="tokens that take small modules, big ones or none make plain how much computation each token needs",
    cost="the small modules' weights and routers; while training both modules",
)
class DuoLLM:
    """Layers of SwiGLU become the big modules of `duo` channel mixers, each with a small module beside it that is silent at first.

    Keivan Alizadeh et al., 2024, arXiv:2410.10846.

    Two stages, each a run. 'modules': tokens take ways by chance, and all weights learn. 'router': on the first run's model, the
    routers choose, and they alone learn. For native models.

    at: the layers, as a pattern of [model] names them. stage: which of the two.
    small: hidden features of the small module, as a share. skip: whether tokens may take neither.
    price: of computation, in the loss of the second stage. Without it a router has no reason to save.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        at: str = ":",
        stage: Stage = "modules",
        small: Annotated[float, Interval(gt=0, lt=1)] = 0.125,
        skip: bool = True,
        price: NonNegative = 0.0,
    ) -> None:
        self.at, self.stage, self.small, self.skip, self.price = at, stage, small, skip, price

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The seed of what is drawn. Raises: UsageError where the layers are not of the kind that the stage needs."""
        anatomy = native(model, "duo_llm")
        if self.stage == "router":
            self._duos(anatomy)
        else:
            gated_hidden(anatomy, self.at, "duo_llm")
        return Decision({"seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with two modules a layer, or with routers that learn."""
        anatomy = native(model, "duo_llm")
        if self.stage == "router":
            numbers = self._duos(anatomy)
            model.requires_grad_(False)
            for number in numbers:
                mixer = anatomy.model.blocks[number].channel_mixer
                mixer.way, mixer.price = "router", self.price
                mixer.router.requires_grad_(True)
            anatomy.restate_channel_mixers({number: {"way": "router", "price": self.price} for number in numbers})
            return model
        options = {"small": self.small, "skip": self.skip, "way": "chance"}
        mixer = Choice.of("model", "duo", kind="channel mixer", **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(decision.values["seed"]))
            for number, dense in anatomy.swap_channel_mixers(self.at, mixer).items():
                anatomy.model.blocks[number].channel_mixer.big = dense
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are of a kind that there is."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        if self.stage == "router":
            return f"duo_llm: routers choose between modules in layers {self.at}, and learn alone, at a price of {self.price:g}"
        return f"duo_llm: layers {self.at} have a module of {self.small:g} of their size beside them, taken by chance"

    def _duos(self, anatomy: Any) -> list[int]:
        found = [
            number
            for number in anatomy.numbers(self.at)
            if hasattr(anatomy.model.blocks[number].channel_mixer, "way_flops")
        ]
        if len(found) < len(anatomy.numbers(self.at)):
            raise UsageError("duo_llm: the stage 'router' is for a model whose layers had the stage 'modules' before")
        return found
