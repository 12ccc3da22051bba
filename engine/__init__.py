"""The lean runtime: request → plan → loop → image, over interchangeable backends."""

from ..core.errors import MRCError
from .engine import EditResult, Engine
from .request import EditRequest
from .serving import AsyncEngine

__all__ = ["AsyncEngine", "EditRequest", "EditResult", "Engine", "MRCError"]
