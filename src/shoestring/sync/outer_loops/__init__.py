"""One file an outer loop: when workers exchange, and what becomes of it."""
