"""Reward models in the hands of others: adapters for the trainers that optimise policies at scale."""
