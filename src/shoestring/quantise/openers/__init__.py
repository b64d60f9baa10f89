"""What opens the folder of a quantised model."""
