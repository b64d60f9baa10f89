"""How much each expert of an ensemble counts at each place of a text, from what was read before it."""
