"""Tuning a model that exists: adapters, trained beside frozen weights."""
