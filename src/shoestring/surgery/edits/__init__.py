"""Edits of structure, one file each (`contract.edit`)."""
