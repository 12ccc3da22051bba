"""The lean runtime: request → plan → loop → image, over interchangeable backends."""

from ..core.errors import MRCError
from .engine import EditResult, Engine
from .serving import AsyncEngine

__all__ = ["AsyncEngine", "EditResult", "Engine", "MRCError"]
