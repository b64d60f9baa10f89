"""What the engines share: batch, model, cost, cache, anatomy, edit, objective. Torch only; every engine stands on it."""
