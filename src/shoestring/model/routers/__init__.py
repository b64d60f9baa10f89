"""Routers: which experts a token goes to. The contract is in `model/routing.py`."""
