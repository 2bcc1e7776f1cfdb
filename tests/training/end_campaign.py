"""Ends trainings with data workers and peers by random signals and kills, resumes them, and compares the bytes.

    python tests/training/end_campaign.py --ends 30 --seconds 900 --report ends.json

Each trial starts `dgmn2 train` with 0, 1 or 2 workers on 1 or 2 processes, and at a random moment sends one of:
SIGTERM, SIGINT or SIGKILL to the main process, SIGTERM to its process group, SIGKILL to one data worker, SIGKILL to one
of the processes that train together. It must end within 30 seconds with the documented code and leave no process
behind; `--resume` must then end with the checkpoints and the log of the unbroken run. The exit code is 1 if one did
not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from kill_campaign import DATA, traces
from small_trainings import write_streets

import dgmn2cli

ROOT = Path(dgmn2cli.__file__).parents[1]
STEPS, LIMIT = 6, 30.0
SETUPS = [(workers, processes) for processes in (1, 2) for workers in (0, 1, 2)]
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
# whom, with which signal, and the exit codes that are documented; 0: the training was over before
ENDS = {
    "main SIGTERM": (TERM, {143}),
    "main SIGINT": (INT, {130}),
    "main SIGKILL": (KILL, {-KILL}),
    "group SIGTERM": (TERM, {143}),
    "worker SIGKILL": (KILL, {5}),
    "peer SIGKILL": (KILL, {8}),
}
SIZES = [
    "--scale", "96x64", "--crop", "64", "--window", "64", "--stride", "48", "--device", "cpu", "--threads", "1",
    "--from", "scratch", "--batch-size", "1", "--max-iters", str(STEPS), "--val-every", "3", "--save-every", "1",
    "--keep", "2",
]  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One training that was ended: how, after how many steps, what came of it; `faults` is empty if all is well."""

    seed: int
    workers: int
    processes: int
    end: str
    steps: int
    code: int
    seconds: float
    faults: list[str]


def start(out: Path, workers: int, processes: int) -> subprocess.Popen[str]:
    """A training that goes on with what is in its folder, in a process group of its own."""
    command = [sys.executable, "-m", "dgmn2cli", "train", "setr_naive-tiny", "--data-root", DATA, "--out", out.name]
    options = ["--workers", str(workers), "--gpus", str(processes), "--resume", *SIZES]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with out.with_name(f"{out.name}.err").open("w") as messages:
        return subprocess.Popen(
            [*command, *options], cwd=out.parent, env=environment, start_new_session=True, text=True,
            stdout=subprocess.DEVNULL, stderr=messages,
        )  # fmt: skip


def children(process: int) -> list[int]:
    """The direct children of a process, those of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue  # the thread has ended
    return found


def command_line(process: int) -> bytes:
    """Its arguments; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def family(process: int) -> list[int]:
    """All that descend from a process."""
    return [member for child in children(process) for member in (child, *family(child))]


def ranks(process: int, processes: int) -> list[int]:
    """The processes that train together: the main one alone, or those it has spawned."""
    if processes == 1:
        return [process]
    return [child for child in children(process) if b"spawn_main" in command_line(child)]


def steps_in(out: Path) -> int:
    """Steps in the run's log."""
    log = out / "log.jsonl"
    return log.read_bytes().count(b'"loss"') if log.exists() else 0


def victim(main: int, end: str, processes: int, draw: random.Random) -> int | None:
    """The process to end."""
    whom = end.split()[0]
    if whom in ("main", "group"):
        return main
    training = ranks(main, processes)
    if whom == "peer":
        return draw.choice(training) if len(training) == processes else None
    forked = [child for rank in training for child in children(rank) if command_line(child) == command_line(rank)]
    return draw.choice(forked) if forked else None


def strike(child: subprocess.Popen[str], out: Path, end: str, processes: int, draw: random.Random) -> bool:
    """Waits for a moment drawn at random and ends the training; False where it was over before."""
    until, deadline = draw.randint(0, STEPS - 2), time.monotonic() + 120
    while child.poll() is None and (steps_in(out) < until or not (out / "lock").exists()):
        assert time.monotonic() < deadline, "it does not begin"
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 1.0))
    while child.poll() is None and (hit := victim(child.pid, end, processes, draw)) is None:
        time.sleep(0.02)
    if child.poll() is not None:
        return False
    (os.killpg if end.startswith("group") else os.kill)(hit, ENDS[end][0])
    return True


def alive(process: int) -> bool:
    """Whether it runs; one that nobody has asked about does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_trial(seed: int, folder: Path, wanted: dict[str, dict[str, str]]) -> Trial:
    """One training, ended, resumed and compared."""
    draw = random.Random(seed)
    workers, processes = SETUPS[seed % len(SETUPS)]
    possible = [
        end
        for end in ENDS
        if (workers or not end.startswith("worker")) and (processes > 1 or not end.startswith("peer"))
    ]
    end, out, faults = draw.choice(possible), folder / f"run-{seed}", list[str]()
    child = start(out, workers, processes)
    hit = strike(child, out, end, processes, draw)
    steps, began, relatives = steps_in(out), time.monotonic(), family(child.pid)
    try:
        code = child.wait(LIMIT)
    except subprocess.TimeoutExpired:
        faults.append(f"it still runs {LIMIT:.0f} s after {end}")
        os.killpg(child.pid, KILL)
        code = child.wait()
    seconds = time.monotonic() - began
    messages = out.with_name(f"{out.name}.err").read_text()
    if code not in ENDS[end][1] | (set() if hit and steps_in(out) < STEPS else {0}):
        faults.append(f"exit code {code}: {messages[-300:]}")
    if "Traceback" in messages or messages.count("Error: ") > 1:
        faults.append(f"more than one line: {messages[-1000:]}")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and any(map(alive, relatives)):
        time.sleep(0.1)
    if left := [process for process in relatives if alive(process)]:
        faults.append(f"processes are left: {left}")
    resumed = start(out, workers, processes)
    try:
        again = resumed.wait(180)
    except subprocess.TimeoutExpired:
        faults.append("the resumed run does not end within 180 s")
        os.killpg(resumed.pid, KILL)
        again = 0
    if again:
        faults.append(f"the resumed run: exit code {again}: {out.with_name(f'{out.name}.err').read_text()[-300:]}")
    found, whole = traces(out), unbroken(workers, processes, folder, wanted)
    faults += [f"{name} differs" for name in sorted({*found, *whole}) if found.get(name) != whole.get(name)]
    return Trial(seed, workers, processes, end, steps, code, round(seconds, 1), faults)


def unbroken(workers: int, processes: int, folder: Path, wanted: dict[str, dict[str, str]]) -> dict[str, str]:
    """What the same training ends with when nothing happens to it."""
    name = f"whole-{workers}-{processes}"
    if name not in wanted:
        assert start(folder / name, workers, processes).wait(180) == 0
        wanted[name] = traces(folder / name)
    return wanted[name]


def go_on(ends: int, seconds: float, folder: Path, seed: int = 0) -> list[Trial]:
    """That many trials, or as many as begin within the time."""
    deadline, trials, wanted = time.monotonic() + seconds, list[Trial](), dict[str, dict[str, str]]()
    write_streets(folder / DATA, train=4, val=1)
    while len(trials) < ends and time.monotonic() < deadline:
        trials.append(run_trial(seed + len(trials), folder, wanted))
        sys.stderr.write(f"{trials[-1]}\n")
    return trials


def main() -> int:
    """The campaign as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ends", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=900.0, help="begin no training after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; each has the next one")
    parser.add_argument("--report", type=Path, default=Path("ends.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ends-") as folder:
        trials = go_on(options.ends, options.seconds, Path(folder), options.seed)
    options.report.write_text(json.dumps([asdict(trial) for trial in trials], indent=1) + "\n")
    wrong = sum(bool(trial.faults) for trial in trials)
    slowest = max((trial.seconds for trial in trials), default=0.0)
    sys.stdout.write(f"{len(trials)} trainings ended, {wrong} wrongly; the slowest end took {slowest} s\n")
    return 1 if wrong or len(trials) < options.ends else 0


if __name__ == "__main__":
    sys.exit(main())
