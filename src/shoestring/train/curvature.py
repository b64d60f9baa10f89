"""The curvature of a batch's loss, for the optimisers that ask for it: through the run's own objective."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Likelihood, Objective
from shoestring.errors import UsageError
from shoestring.optim.curvature import Curvature, LogitsCurvature, hessian_vector_products
from shoestring.optim.uncompiled import eagerly
from shoestring.train.precision import autocast

PRODUCTS_OF_A_PRODUCT = 9
"""Matrix products that a Hessian-vector product takes for each one of the forward pass: 1, its backward pass 2, and the
backward pass of those three, two each, 6."""


def curvature_of(
    objective: Objective, model: LanguageModel, batch: Batch, at: At, *, device: str, precision: str, seed: int
) -> Curvature:
    """The curvature of the mean loss of `model` on a batch that lies on the model's device.

    An objective that is a `Likelihood` has all of it; any other has Hessian-vector products alone.

    device, precision: as the training step's; a precision of 'bfloat16' is autocast's.
    seed: of the labels that are drawn; a target that does not count is drawn none.

    Its `flops` follow the convention of `contract.cost`; a Hessian-vector product is 9 forward passes, attention written out.
    """
    count, length = batch.rows, batch.inputs.length
    product_flops = PRODUCTS_OF_A_PRODUCT * model.cost(Shape(count, length)).flops
    if not isinstance(objective, Likelihood):
        return LossCurvature(
            objective, model, batch, at, device=device, precision=precision, product_flops=product_flops
        )
    likelihood: Likelihood = objective

    def logits() -> Tensor:
        with autocast(device, precision):
            return likelihood.logits(model, batch, at)

    return LogitsCurvature(
        logits,
        likelihood.labels(batch),
        seed=seed,
        ignore_index=IGNORED,
        gradient_flops=model.cost(Shape(count, length, backward=True)).flops,
        product_flops=product_flops,
        forward_flops=model.cost(Shape(count, length)).flops,
    )


class LossCurvature:
    """The curvature of an objective that gives no logits.

    flops: operations spent so far through it.
    """

    def __init__(
        self,
        objective: Objective,
        model: LanguageModel,
        batch: Batch,
        at: At,
        *,
        device: str,
        precision: str,
        product_flops: int,
    ) -> None:
        self.objective, self.model, self.batch, self.at = objective, model, batch, at
        self.device, self.precision, self.product_flops, self.flops = device, precision, product_flops, 0

    def sampled_gradients(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], int]:
        """Raises: UsageError: there is nothing to draw labels from."""
        name = type(self.objective).__name__
        raise UsageError(
            f"the objective {name} gives no logits to draw labels from: choose an optimiser or estimator that asks for "
            "Hessian-vector products, --optim.estimator hutchinson say"
        )

    def factors(self, parameters: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Raises: UsageError: there is nothing to draw labels from."""
        name = type(self.objective).__name__
        raise UsageError(f"the objective {name} gives no logits to draw labels from, which this optimiser needs")

    @torch.enable_grad()
    def hessian_vector_products(self, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """As `Curvature`."""
        with eagerly(), sdpa_kernel(SDPBackend.MATH):
            with autocast(self.device, self.precision):
                mean = self.objective(self.model, self.batch, self.at).total
            products = hessian_vector_products(mean, parameters, vectors)
        self.flops += self.product_flops
        return products
