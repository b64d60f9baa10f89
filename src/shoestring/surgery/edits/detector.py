"""A head that tells replaced tokens, beside a model."""

from shoestring.contract.detector import ATTRIBUTE, TokenDetector, detector_of
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "surgery",
    kind="edit",
    name="detector",
    paper="ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators, arXiv:2003.10555",
    claim="encoders trained to tell replaced tokens do better than those trained on hidden ones, for the same compute",
    cost="a matrix of width by width; nothing where it is not asked",
)
class WithDetector:
    """Give a model a head that says of each token whether it was replaced. What the model says beside that stays as it is.

    The objective `replaced_tokens` trains it with the model. Folded, the model is the plain one. Other edits do not know of it:
    change the shape of the model first.
    """

    needs: frozenset[str] = frozenset()

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The seed. Raises: UsageError where the model has such a head already."""
        if hasattr(model, ATTRIBUTE):
            raise UsageError("detector: the model has such a head already")
        return Decision({"width": model.about.width, "seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with the head."""
        like = next(model.parameters())
        head = TokenDetector(decision.values["width"], decision.values["seed"])
        setattr(model, ATTRIBUTE, head.to_empty(device="meta") if like.is_meta else head.to(like.device, like.dtype))
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model without it."""
        detector_of(model)
        delattr(model, ATTRIBUTE)
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        """In a line."""
        size = sum(weight.numel() for weight in detector_of(model).parameters())
        return f"detector: a head that tells replaced tokens, {size:,} parameters"
