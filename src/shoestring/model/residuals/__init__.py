"""Residuals: how the two mixers of a block are joined. The contract is in `model/pre_norm.py`."""
