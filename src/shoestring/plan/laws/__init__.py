"""Laws fitted to runs: from the size of a run to its loss."""
