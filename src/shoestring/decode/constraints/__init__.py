"""What an answer may be, one kind a file: each makes a `decode.sampling.Constraint`."""
