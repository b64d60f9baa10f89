"""Orders in which hidden tokens are filled in. The contract is in `decode/denoising.py`."""
