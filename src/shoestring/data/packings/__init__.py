"""Packings: one file each, a method of kind 'packing': how documents are laid in rows, in place of windows."""
