"""Running a kind of faults, or a control, in processes of their own; a crash or hang ends only one fault.

A stop ends them all at once, and their folders are removed.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.catalogue import kind_named
from faults.controls import CONTROLS
from faults.verdicts import SKIPPED, VIOLATION, Kind

SHOWN = 50  # violations listed per kind
MESSAGES = 400  # messages listed per kind
GIVE_UP = 25  # crashes and hangs of one kind after which the rest is not run
LEAVE = 5.0  # seconds in which killed processes must have let go of a folder


class Stopped(Exception):  # noqa: N818
    """The campaign is to end: the kind that ran has no result."""


class Stop:
    """A wish to end, and the processes that it ends."""

    def __init__(self) -> None:
        self._turn, self._asked = threading.Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()

    def ask(self) -> None:
        """Kills the processes that run; no other one is started."""
        with self._turn:
            self._asked = True
            for child in self._running:
                child.kill()

    def check(self) -> None:
        """Raises Stopped where it was asked for."""
        if self._asked:
            raise Stopped

    @contextmanager
    def running(self, command: list[str], **settings: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A process that a stop ends.

        Raises:
            Stopped: before it, or in its course.
        """
        with self._turn:
            self.check()
            child = subprocess.Popen(command, **settings)
            self._running.add(child)
        try:
            yield child
        finally:
            with self._turn:
                self._running.remove(child)
        self.check()


STOP = Stop()


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder for the time of one kind; what a process killed just now still writes there is removed, too."""
    place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    try:
        yield Path(place.name)
    finally:
        place.cleanup()
        end = time.monotonic() + LEAVE
        while os.path.exists(place.name) and time.monotonic() < end:
            time.sleep(0.05)
            place.cleanup()


def run_kind(kind: Kind, seed: int, count: int, control: str = "", stop_early: bool = False) -> dict[str, Any]:
    """Runs `count` faults of a kind in processes of their own; a crash or hang ends only the fault that caused it."""
    tally: Counter[str] = Counter()
    messages: dict[str, dict[str, Any]] = {}
    violations: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    began, done, broken = time.monotonic(), 0, 0
    with _workplace() as folder:
        while done < count and broken < GIVE_UP and not (stop_early and violations):
            lines, ending = _run_child(kind, seed, count, done, folder, control)
            label = ""
            for line in lines:
                if "label" in line:
                    label = line["label"]
                    continue
                done = line["index"] + 1
                tally[f"{line['outcome']} {line['detail']}" if line["outcome"] == "refused" else line["outcome"]] += 1
                _keep_message(messages, line["message"])
                if line["outcome"] == VIOLATION:
                    violations.append({"label": label, "what": line["detail"]})
                elif line["outcome"] == SKIPPED:
                    skipped[line["detail"]] += 1
                label = ""
            if ending:
                tally[VIOLATION] += 1
                violations.append({"label": label or "between faults", "what": ending})
                done, broken = done + 1, broken + 1
    return {
        "kind": kind.name, "seed": seed, "wanted": count, "run": sum(tally.values()),
        "outcomes": dict(sorted(tally.items())),
        "violations": tally[VIOLATION], "violations_listed": violations[:SHOWN], "skipped": dict(skipped),
        "seconds": round(time.monotonic() - began, 1),
        "messages": sorted(messages.values(), key=lambda found: (-found["count"], found["example"])),
    }  # fmt: skip


def _keep_message(messages: dict[str, dict[str, Any]], text: str) -> None:
    """Counts messages that differ only in names, paths and numbers as one; keeps an example of each."""
    last = text.rstrip().rpartition("\n")[2]
    shape = re.sub(r"[0-9a-f]{64}|[0-9][0-9,.]*|\([^()]*\)|'[^']*'|\S*/\S+", "_", last)[:120]
    if last and (shape in messages or len(messages) < MESSAGES):
        found = messages.setdefault(shape, {"count": 0, "example": text.strip()[:1000]})
        found["count"] += 1


def _run_child(
    kind: Kind, seed: int, count: int, start: int, folder: Path, control: str
) -> tuple[list[dict[str, Any]], str]:
    """The lines of one child, and how it ended if not well."""
    command = [sys.executable, "-m", "faults.child", kind.name, str(seed), str(count), str(start), str(folder), control]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DGMN2_CACHE": str(folder / "user-cache")}
    with (
        tempfile.TemporaryFile() as errors,
        STOP.running(command, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True) as child,
    ):
        assert child.stdout is not None
        data, ending = b"", ""
        patience = kind.patience + 60  # the first line comes after the imports
        while not ending:
            if not select.select([child.stdout], [], [], patience)[0]:
                child.kill()
                ending = f"it hung for {patience:g} s"
            block = os.read(child.stdout.fileno(), 1 << 16)
            if not block:
                break
            data, patience = data + block, kind.patience
        child.stdout.close()
        code = child.wait()
        errors.seek(0)
        if code and not ending:
            last = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
            ending = f"the process ended with {code}: {last[0][:300]}"
    return [json.loads(line) for line in data.splitlines() if _ours(line)], ending


def _ours(line: bytes) -> bool:
    """Whether the child said it; what a weakened program executes may print, too."""
    return line.startswith(b'{"index": ') and line.endswith(b"}")


def run_control(name: str, seed: int) -> dict[str, Any]:
    """Runs a control's faults against the weakened program; it must show at least one violation."""
    control = CONTROLS[name]
    result = run_kind(kind_named(control.kind), seed, control.count, name, stop_early=True)
    first = result["violations_listed"][0]["what"] if result["violations"] else ""
    return {
        "control": name,
        "kind": control.kind,
        "run": result["run"],
        "violations": result["violations"],
        "first": first,
    }
