"""The `dgmn2` command: signals are answered before anything else is imported."""

import atexit
import os
import signal
import sys
from types import FrameType

_WORDS = {signal.SIGINT: b"Error: interrupted by Ctrl-C.\n", signal.SIGTERM: b"Error: stopped by SIGTERM.\n"}


def end_now(number: int, frame: FrameType | None = None) -> None:
    """Ends the process without clean-up; as a signal handler before anything has begun and when all is done."""
    try:
        os.write(2, _WORDS[signal.Signals(number)])
    finally:
        os._exit(128 + number)


def _ignore() -> None:
    """Python puts the default handlers back while it ends, which would replace the exit code of work that is done."""
    for number in _WORDS:
        signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_now)
    atexit.register(_ignore)  # the first registered runs last
    from dgmn2cli.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
