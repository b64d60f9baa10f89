"""Which places of a text a denoising pass computes again. The contract is in `decode/denoising.py`."""
