"""Schedules of the length of rows: one file each, a method of kind 'length'."""
