"""Owns what Ctrl-C and SIGTERM do to a training: it ends at the next step boundary, its state saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within the block SIGINT and SIGTERM are noted instead of acting; a second one acts at once.

    Args:
        signals: which ones; a process that the launcher may kill with SIGTERM notes SIGINT only.
        insistent: a second signal acts as it would have without the block. Off for processes that get each signal
            twice, from the terminal and from their launcher.

    Attributes:
        number: the signal that came, or None.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = SIGNALS, insistent: bool = True) -> None:
        self.number: int | None = None
        self._signals, self._insistent = signals, insistent
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals never arrive
            self._former = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._insistent:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
