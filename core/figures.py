"""Figures as files; matplotlib is imported when the first is drawn."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import MRCError
from .files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty matplotlib figure, sizes in inches, that needs no display.

    Raises:
        MRCError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MRCError("figures need matplotlib: pip install matplotlib, or leave out the figure") from None
    return Figure(figsize=(width, height), layout="constrained")


def encoded(figure: "Figure", file_format: str = "png", dpi: int = 120) -> bytes:
    """The figure as a file in a format that matplotlib writes."""
    data = io.BytesIO()
    figure.savefig(data, format=file_format, dpi=dpi)
    return data.getvalue()


def write_figure(path: Path, figure: "Figure", dpi: int = 120) -> None:
    """Write the figure in the format of the file's suffix, PNG without one."""
    write_file(path, encoded(figure, path.suffix[1:] or "png", dpi))
