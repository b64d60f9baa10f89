"""Corpora: one file each, a method of kind 'corpus' named by what stands before the `:` of a recipe's `data.corpus`."""
