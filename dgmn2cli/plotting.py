"""matplotlib figures in one style, whatever the user's own settings, written whole as PNG or SVG."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmn2cli.errors import printable
from dgmn2cli.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, PALE_BLUE, ORANGE, GRAY = "#1f6fb2", "#b9d3ea", "#eb8c3c", "#646b73"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "text.parse_math": False,  # names are the user's, and `$` in them is no formula
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e5e8",
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "svg.hashsalt": "dgmn2cli",  # equal figures give equal bytes
}


@contextmanager
def drawing() -> Iterator[None]:
    """Imports matplotlib, and gives it this package's style whatever the user's own settings are."""
    logger = logging.getLogger("matplotlib")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)  # building the font cache and a missing home folder are no news
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks: boxes are drawn
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure; width and height in hundreds of pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    if title:
        lines = "\n".join(printable(line) for line in title.splitlines())
        figure.suptitle(lines, x=0.08 / width, ha="left", weight="bold", size=12)
    return figure


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a `png` or `svg` file; equal figures give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()  # written by its canvas: `savefig` would lay the figure out and draw it twice
    if kind == "svg":
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure: SVG where the path's suffix says so, else PNG.

    Raises:
        ResourceError: the file cannot be written.
    """
    return atomic_write(path, rendered(figure, "svg" if Path(path).suffix.lower() == ".svg" else "png"))
