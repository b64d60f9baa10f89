"""How the inputs of matrices are rounded, one file each."""
