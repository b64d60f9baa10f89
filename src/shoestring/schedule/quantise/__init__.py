"""When a model begins to compute with quantised weights, kind 'quantise': from the size of a run to a share of its budget."""
