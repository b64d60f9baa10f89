"""Changes of what a trained model is made of: layers, heads and widths that go or come."""
