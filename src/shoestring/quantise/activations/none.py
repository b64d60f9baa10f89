"""Inputs as they come."""

from shoestring.method import method


@method(
    "quantise",
    kind="activations",
    name="none",
    claim="inputs are rounded by no rule of the model; kernels for packed groups round them to 8 bits as they come",
    cost="none",
)
def none() -> None:
    """Nothing is decided of inputs. Where matrices in groups stay packed, the kernels round groups of 32 inputs to 8 bits."""
