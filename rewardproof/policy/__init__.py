"""Optimising a policy against a Scorer. This room holds sampling, which every other file of it needs."""
