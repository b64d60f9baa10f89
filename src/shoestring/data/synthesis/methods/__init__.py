"""Ways to make text by a model, one file each: methods of kind 'synthesis'."""
