"""Shoestring: plan, train, shrink and serve language models within a budget."""

__version__ = "0.1.0"
