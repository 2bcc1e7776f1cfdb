"""How answers look: tables and JSON on stdout, notices on stderr; whatever is shown is escaped here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import click
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dgmn2cli.cli.options import Session
from dgmn2cli.errors import printable
from dgmn2cli.files import to_plain

UNBOUNDED = 100_000  # columns of a table that goes to a file or a pipe: nothing is cut there
MISSING = "-"


def out(session: Session) -> Console:
    """The console for answers."""
    return _console(session, stderr=False)


def err(session: Session) -> Console:
    """The console for progress and notices."""
    return _console(session, stderr=True)


def _console(session: Session, stderr: bool) -> Console:
    make = partial(Console, stderr=stderr, highlight=False, markup=False, emoji=False)
    console = make(no_color=not session.color or None)
    return console if console.is_terminal else make(width=UNBOUNDED, color_system=None)


def emit(session: Session, report: Any, table: Callable[[], RenderableType | Sequence[RenderableType]]) -> None:
    """Prints the answer: the report as JSON with `--json`, otherwise what `table` makes of it."""
    if session.json:
        click.echo(json.dumps(to_plain(report), indent=2, allow_nan=False))
        return
    made = table()
    parts: Sequence[RenderableType] = made if isinstance(made, (list, tuple)) else [made]  # type: ignore[list-item]  # not a sequence then
    console = out(session)
    for part in parts:
        print_to(console, part)


class _Escaped:
    """A table or text whose control and bidirectional characters are shown as escapes: names in it may be hostile."""

    def __init__(self, part: RenderableType) -> None:
        self.part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.part, options):
            yield Segment("\n".join(map(printable, text.split("\n"))), style, control)


def print_to(console: Console, part: RenderableType) -> None:
    """Prints one table or text, escaped; into a pipe without trailing blanks. What `lines` made is not wrapped."""
    soft = isinstance(part, str) or (isinstance(part, Text) and part.no_wrap is True)
    if console.is_terminal:
        console.print(_Escaped(part), soft_wrap=soft)
        return
    with console.capture() as captured:
        console.print(_Escaped(part), soft_wrap=soft)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def lines(*texts: str) -> Text:
    """Texts below each other; each stays on one line, whatever characters are in it and however long it is."""
    return Text("\n".join(map(printable, texts)), no_wrap=True)


def prose(*texts: str) -> Text:
    """Sentences below each other, wrapped at blanks where a terminal is narrow."""
    return Text("\n".join(map(printable, texts)))


def notice(session: Session, message: str) -> None:
    """Says something on stderr that is no answer and no error; not with `-q`."""
    if not session.quiet:
        click.echo(printable(message), err=True)


def make_table(
    *headings: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = (), title: str | None = None
) -> Table:
    """An empty table; numbers (columns named in `right`) and what is named in `whole` stay on one line.

    Other cells are at most folded, never cut.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.title_justify = title, "left"
    for heading in headings:
        side: Literal["left", "right"] = "right" if heading in right else "left"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=heading in (*right, *whole))
    return table


def record_table(rows: list[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(printable(value)))
    return table


def percent(value: float | None) -> str:
    """`78.25`, or a dash."""
    return MISSING if value is None else f"{value:.2f}"


def millions(value: int | None) -> str:
    """`13.95 M`, or a dash."""
    return MISSING if value is None else f"{value / 1e6:.2f} M"


def billions(value: int | None) -> str:
    """`123.4 G`, or a dash."""
    return MISSING if value is None else f"{value / 1e9:.1f} G"


def megabytes(value: int | None) -> str:
    """`53.4 MB` (10^6 bytes), or a dash."""
    return MISSING if value is None else f"{value / 1e6:.1f} MB"
