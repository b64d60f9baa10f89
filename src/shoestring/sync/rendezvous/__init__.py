"""How the workers of a run find each other, and make sure that they belong together."""
