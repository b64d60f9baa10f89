"""Which experts lie in memory, and which are fetched ahead. The contract is in `decode/expert_policy.py`."""
