"""Runs started: in this process, by several, or by workers that come and go (`launch.launch`)."""
