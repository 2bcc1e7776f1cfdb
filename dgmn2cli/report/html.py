"""HTML pages from the templates beside this file: values are escaped, images embedded, links relative."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import cv2

from dgmn2cli.data.images import read_image
from dgmn2cli.errors import ResourceError
from dgmn2cli.files import atomic_write

_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".svg": "svg+xml"}


def write_page(path: Path, template: str, **values: object) -> Path:
    """Writes a page that needs no network and, but for its links, no other file.

    Args:
        template: name of a file in `templates`.

    Raises:
        ResourceError: an image is gone, or the page cannot be written.
    """
    page = render_page(template, path.parent, **values)
    return atomic_write(path, page.encode("utf-8", "backslashreplace"))  # names may be no UTF-8


def render_page(template: str, folder: Path = Path(), **values: object) -> str:
    """The text of a page that will lie in `folder`.

    Templates have the filters `percent` (of a fraction), `points` (of an SVG polyline), `embed` (an image file), `jpeg`
    (its bytes), `link` and `relative` (of a file, from the page's folder).
    """
    import jinja2

    def relative(file: Path) -> str:
        return Path(os.path.relpath(file, folder)).as_posix()

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dgmn2cli.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "jpeg": lambda content: f"data:image/jpeg;base64,{base64.b64encode(content).decode()}",
        "embed": embedded,
        "relative": relative,
        "link": lambda file: quote(os.fsencode(relative(file))),  # names may be no UTF-8
    }
    return environment.get_template(template).render(values)


def percent(fraction: float | None, digits: int = 1) -> str:
    """`58.5`, or `n/a`."""
    return "n/a" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"


def points(values: Sequence[tuple[float, float]]) -> str:
    """The `points` of an SVG polyline; those that are not finite are left out."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in values if math.isfinite(x) and math.isfinite(y))


def embedded(path: Path) -> str:
    """An image file as a `data:` address; formats that browsers do not show become PNG.

    Raises:
        DataError, ResourceError: it cannot be read.
    """
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        kind, content = "png", cv2.imencode(".png", read_image(path))[1].tobytes()
    else:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResourceError("cannot read the image", where=path, why=error.strerror or str(error)) from error
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
