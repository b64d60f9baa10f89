"""Post-training quantisation as an edit of a model."""
