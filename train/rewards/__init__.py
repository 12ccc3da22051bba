"""Reward data (`mrc-rewards`): judge triplets, draw their statistics, compare the judge with people."""
