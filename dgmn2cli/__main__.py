"""The `dgmn2` command: signals are answered before anything else is imported."""

import atexit
import signal
import sys

from dgmn2cli.signals import WORDS, end_now


def _ignore() -> None:
    """Python puts the default handlers back while it ends, which would replace the exit code of work that is done."""
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_now)
    atexit.register(_ignore)  # the first registered runs last
    from dgmn2cli.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
