"""What finds the smallest recipe whose loss is within a target, one file each."""
