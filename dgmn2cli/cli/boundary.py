"""The one error boundary: whatever ends a command becomes a message on stderr and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from types import FrameType

import click

from dgmn2cli.errors import ConfigError, Dgmn2Error, ResourceError, is_exhaustion
from dgmn2cli.signals import end_now

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
_HELP_WANTED = getattr(click.exceptions, "NoArgsIsHelpError", ())  # click before 8.2 prints the help itself
_SILENT = logging.NullHandler()
READER_GONE = 128 + getattr(signal, "SIGPIPE", 13)
_HINTS = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.ELOOP: "Links in the path lead in a circle; choose another.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}
_FILES_EXHAUSTED = (errno.EMFILE, errno.ENFILE)
# what PyTorch, OpenCV, the dynamic linker and the C++ library say when no memory is left
_MEMORY_EXHAUSTED = re.compile(
    r"can('t|not) allocate memory|failed to map segment|bad_alloc|(insufficient|out of|not enough) memory",
    re.IGNORECASE,
)
NEAR = 0.75  # how similar to what was typed an option is that is suggested
AGAIN_AFTER = 0.05  # seconds after which a signal that came during an import is sent again
PATIENCE = 5.0  # seconds that an import may go on after a signal


class Terminated(BaseException):
    """SIGTERM arrived; raised in the main thread so that clean-up runs."""


def guarded(run: Callable[[], None], debug: bool = False) -> int:
    """Runs a command; returns its exit code, having said on stderr what went wrong if anything did."""
    try:
        with _signals_raise() as received:
            _open_missing_streams()
            if not debug:
                warnings.simplefilter("ignore")
                logging.getLogger().addHandler(_SILENT)  # otherwise libraries' log lines reach stderr
            code = _outcome(run, debug, received)
    except KeyboardInterrupt:  # a second Ctrl-C, during the message
        code = INTERRUPTED
    except Terminated:
        code = TERMINATED
    return code


def _outcome(run: Callable[[], None], debug: bool, received: Sequence[int]) -> int:
    """Runs a command; `received` gets the signals, which some libraries swallow or turn into errors of their own."""
    try:
        try:
            code = _code_of(run)
            sys.stdout.flush()
        except Exception as error:  # whatever a library made of a signal
            if not received:
                raise
            raise _exception_of(received[0]) from error
        if received:
            raise _exception_of(received[0])
        return code
    except (click.Abort, KeyboardInterrupt):
        return _report(Dgmn2Error("interrupted by Ctrl-C"), INTERRUPTED, debug)
    except Terminated:
        return _report(Dgmn2Error("stopped by SIGTERM"), TERMINATED, debug)
    except BrokenPipeError:
        _discard(sys.stdout)
        return READER_GONE
    except click.ClickException as error:
        usage = _usage_error(error)
        return _report(usage, usage.exit_code, debug)
    except Dgmn2Error as error:
        cause = error.__cause__  # a file "cannot be read" also because descriptors ran out
        known = _local_resource(cause) if cause is not None and is_exhaustion(cause) else None
        return _report(known or error, (known or error).exit_code, debug)
    except Exception as error:  # noqa: BLE001  # this is the one place where everything unforeseen ends
        known = _local_resource(error)
        if known:
            return _report(known, known.exit_code, debug)
        return _report(_unforeseen(error, debug), 1, debug)


def _exception_of(number: int) -> BaseException:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _code_of(run: Callable[[], None]) -> int:
    try:
        run()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except _HELP_WANTED as error:  # a group named without its subcommand
        click.echo(error.format_message())
    return 0


def _report(error: Dgmn2Error, code: int, debug: bool) -> int:
    """Writes the single faults, then the message as the last line of stderr."""
    try:
        sys.stdout.flush()  # the answers so far come before the message
    except OSError:
        _discard(sys.stdout)
    if error.told and not debug:
        return code
    only = error.faults[0] if len(error.faults) == 1 and error.why else ""
    told = bool(only) and (error.why in only or only in error.why)  # the message holds the only fault
    lines = [*([] if told else error.fault_lines()), f"Error: {error}"]
    if debug:
        lines.insert(0, traceback.format_exc().rstrip())
    try:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    return code


def _usage_error(error: click.ClickException) -> ConfigError:
    """click's complaint about the command line, in the form of all other messages."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "dgmn2"
    message, hint = error.format_message(), f"See `{path} --help`."
    if isinstance(error, click.NoSuchOption):
        message = f"no such option '{error.option_name[:60]}'"
        names = get_close_matches(error.option_name, error.possibilities or (), cutoff=NEAR)
        near = ", ".join(sorted(names))
        hint = f"Did you mean {near}? {hint}" if near else hint
    for jargon, words in (("a valid integer range", "a whole number"), ("a valid float range", "a number")):
        message = message.replace(jargon, words)
    message = " ".join(message.split()).rstrip(".") or "wrong usage"
    return ConfigError(message[0].lower() + message[1:], where=path, hint=hint)


def _local_resource(error: BaseException) -> ResourceError | None:
    """Failures of memory, disk, descriptors and permissions that no deeper layer put into words."""
    text = str(error).strip()
    first, number = text.splitlines()[0][:200] if text else "", getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _MEMORY_EXHAUSTED.search(text):
        why = "; ".join(filter(None, [first, _limit("RLIMIT_AS", "address space (ulimit -v)")]))
        hint = "Use a smaller image or batch, another device, or free some memory."
        return ResourceError("out of memory", why=why, hint=hint)
    if number in _FILES_EXHAUSTED:
        why = _limit("RLIMIT_NOFILE", "open files (ulimit -n)") or first
        return ResourceError("too many open files", why=why, hint="Raise the limit, or use fewer --workers.")
    if "can't start new thread" in text:
        limits = [_limit("RLIMIT_NPROC", "processes (ulimit -u)"), _limit("RLIMIT_AS", "address space (ulimit -v)")]
        return ResourceError("cannot start a thread", why="; ".join(filter(None, limits)), hint="Raise the limit.")
    if number == errno.ENOENT and _nowhere():
        hint = "Start the command in another folder."
        return ResourceError("the folder in which the command was started is gone", hint=hint)
    if isinstance(error, OSError):
        place = traceback.extract_tb(error.__traceback__)[-1:]
        printing = any(part in frame.filename for frame in place for part in ("click", "rich", __name__.split(".")[-1]))
        where = error.filename if error.filename is not None else "standard output" if printing else ""
        hint = _HINTS.get(error.errno or 0, "Check the path and its permissions.")
        return ResourceError("cannot read or write", where=where, why=error.strerror or text, hint=hint)
    return None


def _nowhere() -> bool:
    """Whether the working folder is gone, for which whatever starts processes asks."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _limit(name: str, words: str) -> str:
    """The process's limit of a resource in words; empty where there is none."""
    try:
        import resource  # not on Windows

        value = resource.getrlimit(getattr(resource, name))[0]
    except (ImportError, AttributeError, OSError):
        return ""
    return "" if value == resource.RLIM_INFINITY else f"the limit of {words} is {value:,}"


def _unforeseen(error: Exception, debug: bool) -> Dgmn2Error:
    text = str(error).strip().splitlines()
    why = f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
    hint = "" if debug else "Run again with --debug for the traceback."
    return Dgmn2Error("an unforeseen failure", why=why, hint=hint)


@contextmanager
def _signals_raise() -> Iterator[list[int]]:
    """Within the block SIGTERM raises `Terminated` and SIGINT `KeyboardInterrupt`; former handlers come back after it.

    A SIGINT that the caller ignores stays ignored. Neither is raised within an import: modules swallow exceptions there
    or turn them into others, and extension modules abort. An import that goes on for too long ends the process.

    Yields:
        The numbers of the signals that were raised, as they come.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        first.append(time.monotonic())
        if not _importing(frame):
            received.append(number)
            raise _exception_of(number)
        if first[-1] - first[0] > PATIENCE:
            end_now(number)
        again = threading.Timer(AGAIN_AFTER, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    numbers = [signal.SIGTERM] + [signal.SIGINT] * (signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)
    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _open_missing_streams() -> None:
    """Opens /dev/null where the caller closed a standard stream, so that no file of ours gets its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # lives as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show is no reason to fail


def _discard(stream: object) -> None:
    """Points the stream at /dev/null: what is still buffered cannot be written, and Python must not try at exit."""
    with suppress(OSError, ValueError, AttributeError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())  # type: ignore[attr-defined]  # AttributeError is suppressed
        os.close(sink)
