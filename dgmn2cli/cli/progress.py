"""The observer of the command line: a bar on a terminal, else a line now and then; results as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Unpack

from rich import filesize
from rich import progress as bars
from rich.text import Text

from dgmn2cli.cli import render
from dgmn2cli.cli.options import Session
from dgmn2cli.errors import printable
from dgmn2cli.observer import Known, Observer

PATIENCE = 2.0  # seconds before a bar appears
QUIET_SECONDS = 30.0  # between two lines where stderr is no terminal

View = Callable[..., str | Text | None]


class TerminalObserver(Observer):
    """Shows progress on stderr, as a context manager; no bar outlives the block.

    For each type of result `views` make the line that shows it on stdout (not with `--json`), `notices` one on stderr.
    """

    def __init__(
        self, session: Session, views: Mapping[type, View] | None = None, notices: Mapping[type, View] | None = None
    ) -> None:
        self.session, self._views, self._notices = session, dict(views or {}), dict(notices or {})
        self._bar: bars.Progress | None = None
        self._task, self._detail, self._done = "", "", 0.0
        self._total: float | None = None
        self._unit = ""
        self._began = self._said = 0.0
        self._first = 0.0
        self._left: float | None = None

    def __enter__(self) -> TerminalObserver:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def note(self, message: str) -> None:
        render.notice(self.session, message)

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        """A bar, once the task has taken two seconds; without a terminal a line every half minute."""
        self.end()
        self._task, self._total, self._done, self._first, self._detail = task, total, done, done, ""
        self._left = None
        self._unit = unit
        self._began = self._said = time.monotonic()
        console = render.err(self.session)
        if console.is_terminal and not self.session.quiet:
            counts: list[bars.ProgressColumn] = (
                [bars.DownloadColumn(), bars.TransferSpeedColumn()] if unit == "bytes" else [bars.MofNCompleteColumn()]
            )
            columns = (bars.TextColumn("{task.description}", markup=False), bars.BarColumn(bar_width=None), *counts)
            self._bar = bars.Progress(*columns, _TimeLeft(), console=console, transient=True)
            self._bar.add_task(self._fitted(task), total=total, completed=done, left=None)  # type: ignore[arg-type]  # rich counts in floats, too

    def advance(self, parts: float = 1, **known: Unpack[Known]) -> None:
        done, total = known.get("done"), known.get("total")
        self._done = self._done + parts if done is None else done
        self._total = self._total if total is None else total
        self._detail, self._left = known.get("detail") or self._detail, known.get("left")
        now = time.monotonic()
        if self._bar is not None:
            if now - self._began > PATIENCE and not self._bar.live.is_started:
                self._bar.start()
            shown = f"{self._task}: {self._detail}" if self._detail else self._task
            description = self._fitted(shown)
            self._bar.update(
                self._bar.task_ids[0], completed=self._done, total=self._total, description=description, left=self._left
            )
        elif now - self._said >= QUIET_SECONDS:
            self._said = now
            self.note(self._line(now))

    def result(self, value: object) -> None:
        """The line that shows it, if it has one."""
        if type(value) in self._views and not self.session.json:
            line = self._views[type(value)](value)
            if line is not None:
                render.print_to(render.out(self.session), line)
        elif type(value) in self._notices:
            line = self._notices[type(value)](value)
            if line is not None:
                self.note(str(line))

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def _fitted(self, description: str) -> str:
        """What stands before the bar, cut where it would push the figures out of the line."""
        assert self._bar is not None
        text = Text(printable(description))
        text.truncate(self._bar.console.width * 2 // 5, overflow="ellipsis")
        return text.plain

    def _line(self, now: float) -> str:
        size = filesize.decimal if self._unit == "bytes" else str
        count = f" {size(round(self._done))} of {size(round(self._total))}" if self._total else ""
        detail = f": {self._detail}" if self._detail else ""
        fresh, seconds = self._done - self._first, self._left
        if seconds is None and self._total and fresh:
            seconds = (now - self._began) / fresh * max(0.0, self._total - self._done)
        left = "" if seconds is None else f", {duration(seconds)} left"
        return f"{self._task}{count}{detail}{left}"


class _TimeLeft(bars.TimeRemainingColumn):
    """The time left as the task's owner tells it, else by the rate of its parts."""

    def render(self, task: bars.Task) -> Text:
        if task.fields["left"] is None:
            return super().render(task)
        return Text(str(timedelta(seconds=round(task.fields["left"]))), style="progress.remaining")


def duration(seconds: float) -> str:
    """`12 s`, `14 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
