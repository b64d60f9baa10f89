"""Models whose next-token probabilities are mixed with those of a datastore, a method a file."""
