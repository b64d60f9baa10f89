"""Searches for a fixed mixture before a run: a method of kind 'mixture search' each, usable without the trainer."""
