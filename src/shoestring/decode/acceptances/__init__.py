"""Rules of acceptance, one file each: which drafted tokens stay (`decode.acceptance`)."""
