"""What results show of themselves in a notebook: HTML that needs nothing else, every value escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from dgmn2cli.errors import printable


def image_html(content: bytes, text: str) -> str:
    """A PNG image, embedded, no wider than the page; `text` is said in its place where images are not shown."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{_safe(text)}" style="max-width: 100%" src="data:image/png;base64,{data}">'


def table_html(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table under a title; all columns but the first hold numbers."""

    def row(cells: Sequence[object], tag: str) -> str:
        made = (
            f'<{tag} style="text-align: {"right" if index else "left"}">{_safe(cell)}</{tag}>'
            for index, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<p><b>{_safe(title)}</b></p><table><thead>{row(headings, 'th')}</thead><tbody>{body}</tbody></table>"


def _safe(value: object) -> str:
    return escape(printable(value))
