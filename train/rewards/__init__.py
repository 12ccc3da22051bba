"""Reward data: triplets judged, their statistics, and people's ratings beside the judge's (`mrc-rewards`)."""
