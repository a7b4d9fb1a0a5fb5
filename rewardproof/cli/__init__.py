"""The `rewardproof` command."""
