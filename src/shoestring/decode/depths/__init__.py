"""Which layers the tokens of an answer go through, a method a file."""
