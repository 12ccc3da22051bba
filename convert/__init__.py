"""Weights of other layouts become checkpoint folders that load: `mrc-convert`."""
