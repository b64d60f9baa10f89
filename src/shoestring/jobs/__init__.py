"""Independent jobs, such as the runs of a sweep: one contract, and the ways to have them made, here or on other machines."""
