"""Interventions: one file each, a method of kind 'intervention': an experiment on what a run reads."""
