"""Judging one fault: refused as it should be, taken rightly, or a violation."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgmn2cli.errors import Dgmn2Error

Judge = Callable[[], str]  # runs one fault; returns its outcome or raises
Faults = Iterator[tuple[str, Judge]]

_PARENT_DEATH_SIGNAL = 1  # of prctl
MESSAGES: list[str] = []  # what the program said since it was last asked

REFUSED, RIGHT, UNSEEABLE, SKIPPED, VIOLATION = "refused", "right", "unseeable", "skipped", "VIOLATION"


class Violation(Exception):  # noqa: N818
    """The program did what it must never do."""


class Skipped(Exception):  # noqa: N818
    """The fault cannot be injected here; the text says why."""


@dataclass(frozen=True)
class Kind:
    """A kind of faults.

    Attributes:
        name: what it is called in the report.
        faults: makes (label, judge) pairs from a random generator, a folder of its own and a number of faults.
        long, short: faults in the campaign and in the test suite.
        patience: seconds after which one fault counts as a hang.
        memory: bytes one fault may add to the process's peak.
        forks: it runs programs in forked processes, so its own must not have computed anything in threads before.
    """

    name: str
    faults: Callable[[random.Random, Path, int], Faults]
    long: int
    short: int
    patience: float = 20.0
    memory: int = 1_500_000_000
    forks: bool = False


def outcome_of(judge: Judge) -> tuple[str, str]:
    """What came of a fault: its outcome class, and a detail (the exit code, or what was violated)."""
    try:
        outcome = judge()
    except Skipped as reason:
        return SKIPPED, str(reason)
    except Violation as violation:
        return VIOLATION, str(violation)
    except Exception as error:  # noqa: BLE001  # anything but a Dgmn2Error would be a traceback or "unforeseen failure"
        place = traceback.extract_tb(error.__traceback__)[-1]
        return VIOLATION, f"{type(error).__name__}: {str(error)[:300]} at {Path(place.filename).name}:{place.lineno}"
    name, _, detail = outcome.partition(" ")
    return name, detail


def judged(action: Callable[[], Any], codes: Collection[int], right: Callable[[Any], bool], else_: str = "") -> str:
    """Runs `action`: refused with one of `codes` is good, a result is good if `right` says so.

    Args:
        action: what is done with the damaged thing.
        codes: exit codes that an honest refusal may have.
        right: whether the result is what an undamaged thing would give.
        else_: the outcome of a result that is not right; a violation if empty.
    """
    try:
        result = action()
    except Dgmn2Error as error:
        return refusal(error, codes)
    if right(result):
        return RIGHT
    if else_:
        return else_
    raise Violation("a wrong result was accepted")


def refusal(error: Dgmn2Error, codes: Collection[int]) -> str:
    """The outcome of an error: it has one of the codes, says where and why, on one printable line."""
    text = str(error)
    if error.exit_code not in codes:
        raise Violation(f"exit code {error.exit_code}, wanted {sorted(codes)}: {text[:300]}")
    if not text.isprintable() or len(text) > 2000:
        raise Violation(f"a message of {len(text)} characters, or not printable: {text[:300]!r}")
    note_message("\n".join((*error.fault_lines(), f"Error: {error}")))
    return f"{REFUSED} {error.exit_code}"


def note_message(text: str) -> None:
    """Keeps what the program said, for the report's list of messages."""
    MESSAGES[:] = [text[-4000:]]


def flipped(data: bytes, rng: random.Random, bits: int = 1) -> bytes:
    """`data` with random bits changed."""
    damaged = bytearray(data)
    for _ in range(bits):
        position = rng.randrange(8 * len(damaged))
        damaged[position // 8] ^= 1 << (position % 8)
    return bytes(damaged)


def spliced(data: bytes, rng: random.Random) -> bytes:
    """`data` with a piece zeroed, lost, doubled, or put elsewhere; never equal to `data`."""
    while True:
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.choice((1, 8, 64, 512, 4096)))
        piece, elsewhere = data[start:end], rng.randrange(len(data))
        damaged = rng.choice((
            data[:start] + bytes(len(piece)) + data[end:], data[:start] + data[end:],
            data[:end] + piece + data[end:], data[:elsewhere] + piece + data[elsewhere + len(piece) :],
            data[:start] + rng.randbytes(len(piece)) + data[end:],
        ))  # fmt: skip
        if damaged != data:
            return damaged


def in_child(
    action: Callable[[], int], seconds: float = 20.0, kill_after: float | None = None, once: Path | None = None
) -> tuple[int, str, str]:
    """Runs `action` in a forked process with pipes for stdout and stderr, as a shell would.

    Args:
        action: gives the exit code.
        seconds: it may take.
        kill_after: seconds from the beginning after which it is killed.
        once: they count from when this path is there, where it appears within `seconds`.

    Returns:
        Its exit code (negative: the signal that ended it), its stdout and stderr.

    Raises:
        Violation: it hung.
    """
    child = start_child(action)
    if kill_after is not None:
        end = time.monotonic() + seconds
        while once is not None and not once.exists() and _runs(child[0]) and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child[0], signal.SIGKILL)
    return end_child(child, seconds)


def _runs(process: int) -> bool:
    """Whether a child of this process has not ended yet; it stays to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def start_child(action: Callable[[], int]) -> tuple[int, list[int]]:
    """Starts what `in_child` runs; its process, and where its output goes."""
    outputs = [os.memfd_create(name) for name in ("out", "err")]
    process = os.fork()
    if process == 0:
        _as_child(action, outputs)
    return process, outputs


def end_child(child: tuple[int, list[int]], seconds: float) -> tuple[int, str, str]:
    """Waits for what `start_child` started; as `in_child`."""
    process, outputs = child
    code = _wait(process, seconds)
    texts = []
    for output in outputs:
        os.lseek(output, 0, os.SEEK_SET)
        with os.fdopen(output, "rb") as file:
            texts.append(file.read().decode("utf-8", "backslashreplace"))
    return code, texts[0], texts[1]


def die_with_parent() -> None:
    """From here on this process is killed when the one that started it ends, however it ends."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _as_child(action: Callable[[], int], outputs: list[int]) -> None:
    """What the forked process does; it never returns."""
    code = 70
    try:
        die_with_parent()
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # it lives as long as the process
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        code = action()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  # shown as Python would show it
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(process: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise Violation(f"it hung for {seconds:g} s")


def peak_memory() -> int:
    """Bytes this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
