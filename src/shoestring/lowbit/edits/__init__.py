"""Training for a number format, one file each (`contract.edit`)."""
