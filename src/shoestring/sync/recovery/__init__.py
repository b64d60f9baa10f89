"""What to do when a stage of a pipeline is lost: one file a policy."""
