"""What decides which code each weight gets, one file each."""
