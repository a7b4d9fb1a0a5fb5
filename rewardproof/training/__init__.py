"""Reward-model training on `transformers.Trainer`: dense models, mixtures and merge coefficients share one trainer."""
