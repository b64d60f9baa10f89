"""Number formats of trained matrices, one file each."""
