"""Kills trainings at random moments, resumes them, and compares what they end with to the unbroken run, byte for byte.

    python tests/training/kill_campaign.py --kills 100 --report kills.json

Each life of a training is the command line in a process of its own. Half of the kills come at any time, half while a
checkpoint is being written. The report has every kill's seed, moment and place; the exit code is 1 if a run differed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from conftest import write_streets
from train_children import command_line, forkserver

SIZES = [
    "--scale", "96x64", "--crop", "64", "--window", "64", "--stride", "48", "--device", "cpu", "--threads", "1",
    "--from", "scratch", "--max-iters", "4", "--val-every", "2", "--save-every", "1", "--keep", "2",
]  # fmt: skip
KINDS = {
    "plain": ["--workers", "0", "--batch-size", "2"],
    "rich": [
        "--workers", "1", "--batch-size", "1", "--accumulate", "2", "--ema", "--class-weights", "auto",
        "--dtype", "bfloat16", "--set", "model.drop_path=0.2", "--set", "train.ema_decay=0.5",
    ],
}  # fmt: skip
LIVES = 4  # of one training; the last one is not killed
PATIENCE = 300.0  # seconds for one life


@dataclass(frozen=True)
class Kill:
    """One SIGKILL that hit: the training's life, when, and how far the run was."""

    life: int
    after: float
    in_save: bool
    log_lines: int
    files: list[str]


@dataclass
class Trial:
    """One training, killed as often as its seed wants."""

    seed: int
    kind: str
    kills: list[Kill] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    seconds: float = 0.0


def start(kind: str, data: Path, out: Path, messages: Path):
    """A life of the training in `out`, begun; what it says goes to files in `messages`."""
    arguments = ["train", "fpn-tiny", "--data-root", str(data), "--out", str(out), "--resume", *SIZES, *KINDS[kind]]
    messages.mkdir(exist_ok=True)
    child = forkserver().Process(target=command_line, args=(arguments, messages))
    child.start()
    return child


def finish(child, messages: Path) -> None:
    """Waits for a life to end by itself, well."""
    child.join(PATIENCE)
    if child.exitcode != 0:
        child.kill()
        raise RuntimeError(f"a training ended with {child.exitcode}: {(messages / 'err').read_text()}")


def traces(out: Path) -> dict[str, str]:
    """SHA-256 of what must not depend on interruptions: checkpoints (all but the one before the last) and the log."""
    found = {path.name: path for path in (out / "checkpoints").glob("*.pth") if path.name != "previous.pth"}
    found["log.jsonl"] = out / "log.jsonl"
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(found.items())}


def being_saved(out: Path) -> bool:
    """Whether a checkpoint is under way."""
    return any((out / "checkpoints").glob(".*")) or (out / "checkpoints" / "next.pth").exists()


def strike(child, out: Path, draw: random.Random, usual: float, life: int) -> Kill | None:
    """Kills a life at a moment drawn at random; None where it was over before."""
    began, in_save = time.monotonic(), draw.random() < 0.5
    if in_save:
        for _ in range(draw.randint(1, 4)):  # one of the saves ahead
            while child.is_alive() and not being_saved(out):
                time.sleep(0.001)
            wait = draw.uniform(0.0, 0.3)
            time.sleep(wait)
    else:
        child.join(draw.uniform(0.0, usual))
    child.kill()
    child.join()
    if child.exitcode == 0:
        return None
    log = out / "log.jsonl"
    names = sorted(path.name for path in (out / "checkpoints").glob("*")) if (out / "checkpoints").exists() else []
    torn = being_saved(out)
    lines = log.read_bytes().count(b"\n") if log.exists() else 0
    return Kill(life, round(time.monotonic() - began, 3), torn, lines, names)


def run_trial(seed: int, kind: str, data: Path, folder: Path, usual: float, wanted: dict[str, str], most: int) -> Trial:
    """A training that is killed up to `most` times, resumed to its end, and compared."""
    draw, trial, began = random.Random(seed), Trial(seed, kind), time.monotonic()
    out, messages = folder / f"run-{seed}", folder / f"messages-{seed}"
    for life in range(LIVES):
        child = start(kind, data, out, messages)
        if life == LIVES - 1 or len(trial.kills) == most:
            finish(child, messages)
            break
        kill = strike(child, out, draw, usual, life)
        if kill is None:
            break
        trial.kills.append(kill)
    found = traces(out)
    trial.differs = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    left = [
        path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".") or path.name == "next.pth"
    ]
    trial.differs += left
    trial.seconds = round(time.monotonic() - began, 2)
    if not trial.differs:
        shutil.rmtree(out)
    return trial


def campaign(kills: int, seed: int, folder: Path, say=lambda trial, count: None) -> list[Trial]:
    """Trials until `kills` kills have hit; `say` is called after each."""
    data = write_streets(folder / "data", train=4, val=1)
    wanted, usual = {}, {}
    for kind in KINDS:
        began = time.monotonic()
        finish(start(kind, data, folder / kind, folder / f"messages-{kind}"), folder / f"messages-{kind}")
        usual[kind], wanted[kind] = time.monotonic() - began, traces(folder / kind)
    trials: list[Trial] = []
    while (count := sum(len(trial.kills) for trial in trials)) < kills:
        number = seed * 1_000_000 + len(trials)
        kind = list(KINDS)[len(trials) % len(KINDS)]
        trials.append(run_trial(number, kind, data, folder, usual[kind], wanted[kind], kills - count))
        say(trials[-1], count + len(trials[-1].kills))
    return trials


def summary(trials: list[Trial]) -> dict[str, object]:
    """The report."""
    struck = [kill for trial in trials for kill in trial.kills]
    return {
        "kills": len(struck),
        "inside_a_save": sum(kill.in_save for kill in struck),
        "before_the_first_checkpoint": sum(not any(name.endswith(".pth") for name in kill.files) for kill in struck),
        "trainings": len(trials),
        "different": sum(bool(trial.differs) for trial in trials),
        "seconds": round(sum(trial.seconds for trial in trials), 1),
        "trials": [asdict(trial) for trial in trials],
    }


def main() -> int:
    """The campaign as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to train; a temporary folder if not given")
    parser.add_argument("--report", type=Path, default=Path("kills.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-", dir=options.folder) as folder:

        def say(trial: Trial, count: int) -> None:
            ending = f"DIFFERENT: {trial.differs}" if trial.differs else "the same"
            sys.stderr.write(f"{count} kills: run {trial.seed}, {trial.kind}, {len(trial.kills)} kills: {ending}\n")

        report = summary(campaign(options.kills, options.seed, Path(folder), say))
    options.report.write_text(json.dumps(report, indent=1) + "\n")
    figures = ", ".join(f"{value} {name}" for name, value in report.items() if name != "trials")
    sys.stdout.write(f"{figures.replace('_', ' ')}\n")
    return 1 if report["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
