"""Selections: one file each, a method of kind 'selection': which rows of a larger batch are trained on."""
