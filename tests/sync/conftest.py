"""Puts this folder on the path of the folders below, which share its runs and codecs."""
