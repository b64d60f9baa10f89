"""Generating text: `generate` yields tokens, `SamplingConfig` says how they are chosen."""

from shoestring.decode.generate import Stop, generate
from shoestring.decode.sampler import SamplingConfig

__all__ = ["SamplingConfig", "Stop", "generate"]
