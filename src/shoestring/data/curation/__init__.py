"""Curation: documents are looked at one after the other, get columns, and some are dropped, each for a reason that is kept."""
