"""Judges: score an edit on the three perspectives."""

from .reward import Judge, Reward

__all__ = ["Judge", "Reward"]
