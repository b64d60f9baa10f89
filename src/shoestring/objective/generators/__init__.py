"""Generators of replaced tokens. The contract is in `objective/generator.py`."""
