"""A pretrained model whose outer layers see parts of the context only, to be trained on longer texts."""

from typing import Any

from shoestring.contract.attention_rule import ruled
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, NonNegative, Whole, method
from shoestring.surgery.partial_context import PartialContext


@method(
    "surgery",
    kind="edit",
    name="longgen",
    paper="A Little Goes a Long Way: Efficient Long Context Training and Inference with Partial Contexts, arXiv:2410.01485",
    claim="Llama 2 7B and 70B reach 128k tokens with 5 billion tokens of training, 1.55 times as fast, and with 62 % less of "
    "the memory of keys and values",
    cost="less: layers with parts of the context score window + sinks + T / stride keys a token in place of T",
)
class PartialContexts:
    """Let a third of the layers, those in the middle, see the whole context, and the others parts of it, to train on longer texts.

    In a layer with a part of the context, token t sees j <= t where

        t - j < window,   or j < sinks,   or (stride > 0 and floor(j / block) = h modulo stride)

    h: the head of keys. With a stride of 0 that is a window with sinks; else blocks at equal distances too, others of each head. No
    weight is added or changed: what the model lost it learns again as it is trained. Whole texts are computed in pieces of `window`
    tokens, so that no scores are worked out beyond the parts. In decoding these layers hold what later tokens see, and no more;
    the model's own caches do that without a setting, one text at a time.

    full: share of the layers that see all. window, sinks, block: tokens. stride: blocks from one to the next.
    context: tokens of a text from now on; 0: as before. theta: base of the rotary positions from now on, larger for a larger
    context; 0: as before.

    The sizes of windows and blocks, and how blocks are shared among heads, are our own: the paper's were not to be had. A share of
    heads that is not a multiple of the stride leaves some blocks unseen.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        full: Fraction = 1 / 3,
        window: Count = 1024,
        sinks: Whole = 4,
        block: Count = 64,
        stride: Whole = 0,
        context: Whole = 0,
        theta: NonNegative = 0.0,
    ) -> None:
        if theta and not context:
            raise UsageError("longgen: theta goes with a longer context: set context too")
        self.full, self.window, self.sinks, self.block, self.stride = full, window, sinks, block, stride
        self.context, self.theta = context, theta

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The layers. Raises: UsageError where one has no attention that is known, and for a context below the model's."""
        anatomy = ruled(model, "longgen")
        if any(anatomy.rules()):
            raise UsageError(
                "longgen: layers of the model attend by a rule already: one edit can say how a layer attends"
            )
        layers = len(anatomy.attention_sizes())
        whole = round(self.full * layers)
        first = (layers - whole) // 2
        parts = [number for number in range(layers) if not first <= number < first + whole]
        if not parts:
            raise UsageError(
                f"longgen: full = {self.full:g} leaves none of the {layers} layers with a part of the context"
            )
        if self.context and self.context < model.about.context:
            raise UsageError(
                f"longgen: the model reads {model.about.context} tokens already, and context is {self.context}"
            )
        return Decision({"layers": parts})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model whose outer layers see parts."""
        values: Any = decision.values
        anatomy = ruled(model, "longgen")
        if self.context:
            anatomy.extend_context(self.context, self.theta or None)
        sizes = {"window": self.window, "sinks": self.sinks, "block": self.block, "stride": self.stride}
        anatomy.set_rules({number: PartialContext(**sizes) for number in values["layers"]})
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Raises: UsageError. A plain model would see the whole context."""
        raise UsageError("longgen: what a layer sees is more than one matrix can say: there is no plain form of it")

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        values: Any = decision.values
        parts = f"the first {self.sinks} and the latest {self.window} tokens"
        blocks = f", and one block of {self.block} in {self.stride}" if self.stride else ""
        context = f"; texts of {self.context:,} tokens" if self.context else ""
        return f"longgen: {len(values['layers'])} of {model.about.layers} layers see {parts}{blocks}{context}"
