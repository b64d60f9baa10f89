"""Spans: what wraps a run of layers. The contract is in `model/span.py`."""
