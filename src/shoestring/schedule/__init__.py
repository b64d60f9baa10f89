"""Learning-rate schedules: pure functions of progress, the spent share of the binding budget."""
