"""Owns the campaign: every kind of faults, the negative controls, and the report. Exit code 1 on any violation."""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from faults.catalogue import KINDS, kind_named
from faults.controls import CONTROLS
from faults.verdicts import SKIPPED, VIOLATION, Kind

SHOWN = 50  # violations listed per kind
GIVE_UP = 25  # crashes and hangs of one kind after which the rest is not run


def run_kind(kind: Kind, seed: int, count: int, control: str = "", stop_early: bool = False) -> dict[str, Any]:
    """Runs `count` faults of a kind in processes of their own; a crash or hang ends only the fault that caused it."""
    tally: Counter[str] = Counter()
    violations: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    began, done, broken = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while done < count and broken < GIVE_UP and not (stop_early and violations):
            lines, ending = _run_child(kind, seed, count, done, Path(folder), control)
            label = ""
            for line in lines:
                if "label" in line:
                    label = line["label"]
                    continue
                done = line["index"] + 1
                tally[f"{line['outcome']} {line['detail']}" if line["outcome"] == "refused" else line["outcome"]] += 1
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
    }  # fmt: skip


def _run_child(
    kind: Kind, seed: int, count: int, start: int, folder: Path, control: str
) -> tuple[list[dict[str, Any]], str]:
    """The lines of one child, and how it ended if not well."""
    command = [sys.executable, "-m", "faults.child", kind.name, str(seed), str(count), str(start), str(folder), control]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DGMN2_CACHE": str(folder / "user-cache")}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
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


def main() -> int:
    """Runs the campaign as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m faults", description="Inject faults; count what came of them.")
    parser.add_argument("--out", type=Path, default=Path("faults.json"), help="the report, JSON")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="share of each kind's faults that is run")
    parser.add_argument("--only", default="", help="only kinds whose name holds this")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        wanted = [kind for kind in KINDS if options.only in kind.name]
        kinds = list(
            pool.map(lambda k: _told(run_kind(k, options.seed, max(1, round(k.long * options.share)))), wanted)
        )
        names = [name for name, control in CONTROLS.items() if options.only in control.kind]
        controls = list(pool.map(lambda name: _told(run_control(name, options.seed)), names))
    blind = [control["control"] for control in controls if not control["violations"]]
    report = {
        "faults": sum(kind["run"] for kind in kinds), "violations": sum(kind["violations"] for kind in kinds),
        "controls_that_saw_nothing": blind, "seed": options.seed, "seconds": round(time.monotonic() - began, 1),
        "machine": platform.platform(), "python": platform.python_version(), "kinds": kinds, "controls": controls,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    say(f"{report['faults']} faults, {report['violations']} violations, {len(blind)} blind controls; {options.out}")
    return 1 if report["violations"] or blind else 0


def _told(result: dict[str, Any]) -> dict[str, Any]:
    say(json.dumps({key: value for key, value in result.items() if key not in ("violations_listed", "wanted")}))
    return result


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
