"""Multi-Reward-Condition image editing (MRC, arXiv 2411.04713): train, export, edit.

    from mrc_edit import Engine, AsyncEngine
    from mrc_edit import MRCPipeline  # for diffusers, with the extra `torch`

This folder is the package: the build installs this file and the folders beside it as `mrc_edit` (pyproject.toml).
Importing `mrc_edit` alone imports nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import MRCError
    from .engine import AsyncEngine, EditRequest, EditResult, Engine
    from .integrations.diffusers import MRCPipeline as MRCPipeline

__version__ = "0.1.0"
__all__ = ["AsyncEngine", "EditRequest", "EditResult", "Engine", "MRCError"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(".engine", __name__), name)
    if name == "MRCPipeline":  # not in __all__: it needs PyTorch
        return import_module(".integrations.diffusers", __name__).MRCPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
