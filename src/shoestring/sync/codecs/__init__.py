"""One file a codec: tensors packed into bytes, and back."""
