"""What decoding methods need, made of a model and texts, a method a file (`decode.preparation`)."""
