"""Channel mixers: what works on each token by itself. The contract is in `model/block.py`."""
