"""Bridges: how the models of a transformers `model_type` become a native `Transformer`, and back. One file a family."""
