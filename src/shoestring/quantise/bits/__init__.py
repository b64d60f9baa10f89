"""Which matrix gets how many bits, one file each."""
