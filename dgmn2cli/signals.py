"""What ends the process at once on SIGINT and SIGTERM, where nothing has begun yet or all is done."""

import os
import signal
from types import FrameType

WORDS = {signal.SIGINT: b"Error: interrupted by Ctrl-C.\n", signal.SIGTERM: b"Error: stopped by SIGTERM.\n"}


def end_now(number: int, frame: FrameType | None = None) -> None:
    """Ends the process without clean-up; as a signal handler before anything has begun and when all is done."""
    try:
        os.write(2, WORDS[signal.Signals(number)])
    finally:
        os._exit(128 + number)
