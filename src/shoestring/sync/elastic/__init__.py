"""The outer loop among workers that come and go: who takes part in a round, and how a round ends."""
