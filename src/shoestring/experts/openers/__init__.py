"""What opens a model, one file a kind of place (`base.opened.Opener`)."""
