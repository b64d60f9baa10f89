"""Meters: one file each, a method of kind 'meter': what a few held rows say of how a model learns. For loops of your own."""
