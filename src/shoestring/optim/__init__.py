"""Optimisers, each a `torch.optim.Optimizer`, and the partition that gives every parameter to exactly one of them."""
