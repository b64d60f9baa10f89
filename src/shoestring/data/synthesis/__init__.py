"""Text made by a model from text: `synthesise` is the engine; the methods of kind 'synthesis' lie one file each in `methods`."""
