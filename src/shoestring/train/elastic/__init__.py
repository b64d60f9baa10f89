"""A worker of a run whose workers come and go: its steps, its state, its run from the first second to the last."""
