"""The targets: a file each, found by its name. `tests/fuzz/__init__.py` says how to add one."""
