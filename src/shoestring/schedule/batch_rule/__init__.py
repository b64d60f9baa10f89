"""Rules for another batch size, kind 'batch rule': learning rates and averages tuned at one batch, for a run at another."""
