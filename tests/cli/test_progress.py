"""Progress on the terminal: the bar, and the line now and then where stderr is none."""

from __future__ import annotations

import pytest

from dgmn2cli.cli import progress
from dgmn2cli.cli.options import Session


@pytest.mark.parametrize(
    ("unit", "total", "done", "said"),
    [
        ("bytes", 226_000_000, 113_000_000, "fetching x 113.0 MB of 226.0 MB"),
        ("images", 500, 250, "fetching x 250 of 500"),
        ("steps", 3, 1.4, "fetching x 1 of 3"),
        ("folders", None, 7, "fetching x: in y"),
        ("steps", 3, 3.1, "fetching x 3 of 3: in y, 0 s left"),
    ],
)
def test_without_a_terminal_a_line_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, unit: str, total: float | None, done: float,
    said: str,
) -> None:  # fmt: skip
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.TerminalObserver(Session()) as observer:
        observer.begin("fetching x", total, unit=unit)
        observer.advance(done=done / 2, detail="in y")  # after 20 s
        assert capsys.readouterr().err == ""
        observer.advance(done=done)  # after 40 s
        err = capsys.readouterr().err
    assert err.startswith(said)
    assert len(err.splitlines()) == 1


def test_who_knows_how_long_it_takes_is_believed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.TerminalObserver(Session()) as observer:
        observer.begin("training", 100, unit="steps")
        observer.advance(done=50, left=3600.0)  # after 40 s; by its rate another 40
        assert capsys.readouterr().err.rstrip().endswith("50 of 100, 60 min left")


def test_the_bar_shows_the_time_that_it_is_told() -> None:
    column, bar = progress._TimeLeft(), progress.bars.Progress()
    first, second = (bar.add_task("training", total=10, completed=5, left=left) for left in (5025.4, None))
    shown = [column.render(bar.tasks[task]).plain for task in (first, second)]
    assert shown == ["1:23:45", "-:--:--"]
