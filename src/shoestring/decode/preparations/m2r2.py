"""A residual stream that runs ahead, for drafts of a model's first layers."""

from collections.abc import Sequence

from shoestring.contract.model import LanguageModel
from shoestring.decode.accelerated import NAME, train_accelerators
from shoestring.decode.preparation import Given, Prepared, windows
from shoestring.method import Count, Positive, Seed, Whole, method


@method(
    "decode",
    kind="preparation",
    name=NAME,
    paper="M2R2: Mixture of Multi-Rate Residuals for Efficient Transformer Inference, arXiv:2502.02040",
    claim="a fast residual stream aligns early states with the last ones, without pre-training anew",
    cost="a pass of the model, one of its first layers, and the low-rank products with their gradients, over the texts",
)
def m2r2(
    target: LanguageModel,
    texts: Sequence[Given],
    *,
    layers: Whole = 0,
    rank: Count = 16,
    epochs: Count = 1,
    length: Count = 128,
    rows: Count = 8,
    learning_rate: Positive = 3e-3,
    seed: Seed = 0,
) -> Prepared:
    """Train the fast stream of the drafter `m2r2`.

    target: the model that will write, a native or bridged one. texts: to learn from.
    layers: of the model that draft; 0: a third of them. rank: of the changes of the stream. epochs: over the texts.
    length, rows: of a batch, the length at most the context. learning_rate: at the start. seed: of the first weights.
    """
    made, losses, charge = train_accelerators(
        target,
        windows(texts, min(length, target.about.context), rows),
        layers=layers or max(1, target.about.layers // 3),
        rank=rank,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
    )
    own = made.about.layers
    return Prepared(
        made.save,
        charge,
        (f"{own} of {target.about.layers} layers; divergence from {losses[0]:.3f} to {losses[-1]:.3f} nats a token",),
    )
