"""Schedulers, one file each: which rows read how many tokens in the next pass (`decode.scheduler`)."""
