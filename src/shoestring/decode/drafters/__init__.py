"""Drafters, one file each: they propose tokens that may come next (`decode.drafter`)."""
