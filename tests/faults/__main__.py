"""The campaign: every kind of faults, the negative controls, one report. Exit code 1 on any violation."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import dgmn2cli
from dgmn2cli.files import atomic_write
from faults.catalogue import KINDS
from faults.controls import CONTROLS
from faults.running import STOP, run_control, run_kind

SAID_APART = ("violations_listed", "wanted", "messages")


class Campaign:
    """A report that is on disk after every part, so that a run that was cut can go on where it stopped.

    Args:
        path: the report.
        about: what a report must have in common with this run to be continued.
        resume: take over the parts that are in the report already.

    Raises:
        ValueError: the report there is of another program, seed or share.
    """

    def __init__(self, path: Path, about: dict[str, Any], resume: bool) -> None:
        self.path, self.about = path, about
        self.kinds: list[dict[str, Any]] = []
        self.controls: list[dict[str, Any]] = []
        self.continued, self.seconds, self.began = 0, 0.0, time.monotonic()
        self._turn = threading.Lock()
        if resume and path.exists():
            self._take_over(json.loads(path.read_text()))

    def _take_over(self, report: dict[str, Any]) -> None:
        different = [key for key, value in self.about.items() if report.get(key) != value]
        if different:
            raise ValueError(f"{self.path} cannot be continued: other {', '.join(different)}; start without --resume")
        self.kinds, self.controls = report["kinds"], report["controls"]
        self.continued, self.seconds = report["continued"] + 1, report["seconds"]

    def part(self, place: list[dict[str, Any]], key: str, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Runs a part unless the report has it."""
        if any(found[key] == name for found in place):
            say(f"{name}: done before")
            return
        result = run()
        say(json.dumps({name: value for name, value in result.items() if name not in SAID_APART}))
        with self._turn:
            place.append(result)
            self.write(complete=False)

    def write(self, complete: bool) -> dict[str, Any]:
        """Writes the report as it is now."""
        order = {kind.name: number for number, kind in enumerate(KINDS)}
        self.kinds.sort(key=lambda found: order[found["kind"]])
        self.controls.sort(key=lambda found: list(CONTROLS).index(found["control"]))
        report = {
            "complete": complete, "faults": sum(kind["run"] for kind in self.kinds),
            "violations": sum(kind["violations"] for kind in self.kinds),
            "controls_run": len(self.controls), "controls_that_saw_nothing": self.blind,
            "continued": self.continued, "seconds": round(self.seconds + time.monotonic() - self.began, 1),
            **self.about, "machine": platform.platform(), "kinds": self.kinds, "controls": self.controls,
        }  # fmt: skip
        atomic_write(self.path, json.dumps(report, indent=2) + "\n")
        return report

    @property
    def blind(self) -> list[str]:
        """Controls that saw no violation although they should."""
        return [control["control"] for control in self.controls if not control["violations"]]


def fingerprint() -> str:
    """Stands for the program and its faults as they are now."""
    digest = hashlib.sha256()
    root = Path(dgmn2cli.__file__).parents[1]
    tests = [*root.glob("tests/faults/*.py"), root / "tests" / "pretend_hosts.py", root / "tests" / "mounts.py"]
    for path in sorted([*root.glob("dgmn2cli/**/*.py"), *tests, root / "zoo.json"]):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@contextmanager
def signals_end_it() -> Iterator[None]:
    """Within the block the first SIGINT or SIGTERM raises SystemExit, so that nothing stays behind; no second one does.

    The former handlers are put back afterwards.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        say("stopped; what was complete is in the report, and --resume goes on from there")
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def all_or_none(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Where the block ends by an exception, the parts that run in `pool` end, too, and the others never begin."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        STOP.ask()
        raise


def main() -> int:
    """Runs the campaign as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m faults", description="Inject faults; count what came of them.")
    parser.add_argument("--out", type=Path, default=Path("faults.json"), help="the report, JSON")
    parser.add_argument("--resume", action="store_true", help="go on with the report of a run that was cut")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="share of each kind's faults that is run")
    parser.add_argument("--only", default="", help="only kinds, and their controls, whose name holds this")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    about = {
        "program": fingerprint(), "seed": options.seed, "share": options.share, "only": options.only,
        "python": platform.python_version(),
    }  # fmt: skip
    try:
        campaign = Campaign(options.out, about, options.resume)
    except (ValueError, KeyError) as error:
        parser.error(str(error))
    with signals_end_it(), ThreadPoolExecutor(options.jobs) as pool, all_or_none(pool):
        parts = [
            pool.submit(
                campaign.part, campaign.kinds, "kind", kind.name,
                lambda kind=kind: run_kind(kind, options.seed, max(1, round(kind.long * options.share))),
            )
            for kind in KINDS
            if options.only in kind.name
        ]  # fmt: skip
        parts += [
            pool.submit(
                campaign.part, campaign.controls, "control", name,
                lambda name=name: run_control(name, options.seed),
            )
            for name, control in CONTROLS.items()
            if options.only in control.kind
        ]  # fmt: skip
        for part in parts:
            part.result()
    report = campaign.write(complete=True)
    say(f"{report['faults']} faults, {report['violations']} violations, {len(campaign.blind)} blind controls; "
        f"{options.out}")  # fmt: skip
    return 1 if report["violations"] or campaign.blind else 0


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
