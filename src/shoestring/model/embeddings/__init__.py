"""Embeddings that are not as wide as the model. The contract is in `model/narrow_embedding.py`."""
