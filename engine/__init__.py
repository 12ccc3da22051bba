"""The lean runtime: request → plan → loop → image, over interchangeable backends."""

from ..errors import MRCError
from .engine import EditResult, Engine

__all__ = ["EditResult", "Engine", "MRCError"]
