"""What SIGINT and SIGTERM do to work that ends in good order: they are noted, or they interrupt it once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME = 2.0  # seconds within which a second signal is the first one again: sent to a process and to its group


class StopRequest:
    """Within the block SIGINT and SIGTERM are noted instead of acting; a second one acts at once.

    Args:
        insistent: a second signal acts as it would have without the block. Off for processes that get each signal
            twice, from the terminal and from their launcher.

    Attributes:
        number: the signal that came, or None.
        again: whether another one came later.
    """

    def __init__(self, insistent: bool = True) -> None:
        self.number: int | None = None
        self.again = False
        self._insistent, self._came = insistent, 0.0
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals never arrive
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *raised: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._came = number, now
        elif now - self._came > SAME:
            self.again = True
            if self._insistent:
                self._restore()
                signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def interrupt_once() -> None:
    """From now on the first SIGINT or SIGTERM raises KeyboardInterrupt, and later ones leave its clean-up alone."""
    came = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if not came:  # SIG_IGN instead would make Python complain of a signal that is under way already
            came = True
            raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, stop)
