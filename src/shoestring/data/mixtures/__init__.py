"""Mixtures: one file each, a method of kind 'mixture'."""
