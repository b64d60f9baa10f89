"""Curators: one file each, a method of kind 'curation'."""
