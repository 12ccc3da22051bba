"""Triplets and rewards to a checkpoint folder. Empty in this version."""
