"""Adapters, one file each (`contract.edit`)."""
