"""Kills trainings at random moments, resumes them, and compares what they end with to the unbroken run, byte for byte.

    python tests/training/kill_campaign.py --kills 100 --seconds 150 --report kills.json

Each life of a training is the command line in a process of its own, which says in shared memory what it is doing. Of
the kills half come at any time, the others while a checkpoint is being saved: half of those at any time of it, half
when its file is whole and gets its names. The report has every kill's seed, moment and
phase. A report that exists is continued, so that a long campaign can be run in pieces; a campaign over at `--seconds`
says how many kills are to come. The exit code is 1 if a run differed.
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
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from small_trainings import write_streets
from train_children import PHASES, forkserver, watched_command_line

STEPS = 4
SIZES = [
    "--scale", "96x64", "--crop", "64", "--window", "64", "--stride", "48", "--device", "cpu", "--threads", "1",
    "--from", "scratch", "--max-iters", str(STEPS), "--val-every", "2", "--save-every", "1", "--keep", "2",
]  # fmt: skip
KINDS = {
    "plain": ["fpn-tiny", "--workers", "0", "--batch-size", "2"],
    "rich": [
        "setr_naive-tiny", "--workers", "1", "--batch-size", "1", "--accumulate", "2", "--ema",
        "--class-weights", "auto", "--dtype", "bfloat16", "--set", "model.drop_path=0.2", "--set",
        "train.ema_decay=0.5",
    ],
}  # fmt: skip
DATA = "data"  # named relatively: checkpoints hold its path, and those of all pieces of a campaign must be equal
LIVES = 5  # of one training; the last one is not killed
PATIENCE = 120.0  # seconds for one life


@dataclass(frozen=True)
class Kill:
    """One SIGKILL that hit: the training's life, when, what the process was doing, steps and files there were."""

    life: int
    after: float
    phase: str
    steps: int
    checkpoints: list[str]


@dataclass(frozen=True)
class Trial:
    """One training, killed as often as its seed wants; `differs` names what was not as in the unbroken run."""

    seed: int
    kind: str
    kills: list[Kill]
    differs: list[str]
    seconds: float


@dataclass
class Campaign:
    """All so far.

    Attributes:
        seed: trial number i has the seed `1_000_000 * seed + i`.
        wanted: what the unbroken run of each kind ends with, as `traces` gives it.
        usual: how long it took, in seconds.
        saving: how long one of its saves took.
        trials: the trainings.
    """

    seed: int
    wanted: dict[str, dict[str, str]] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)
    saving: dict[str, float] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many have hit."""
        return sum(len(trial.kills) for trial in self.trials)

    @property
    def different(self) -> int:
        """Trainings that did not end like the unbroken one."""
        return sum(bool(trial.differs) for trial in self.trials)

    def phases(self) -> dict[str, int]:
        """How many kills hit each phase."""
        count = Counter(kill.phase for trial in self.trials for kill in trial.kills)
        return {phase: count[phase] for phase in PHASES}

    @classmethod
    def read(cls, path: Path) -> Campaign:
        """What `write` wrote."""
        content = json.loads(path.read_text())
        trials = [Trial(**{**entry, "kills": [Kill(**kill) for kill in entry["kills"]]}) for entry in content["trials"]]
        return cls(content["seed"], content["wanted"], content["usual"], content["saving"], trials)

    def write(self, path: Path) -> None:
        """All of it as JSON, the counts first."""
        counts = {"kills": self.kills, "phases": self.phases(), "different": self.different}
        path.write_text(json.dumps({**counts, **asdict(self)}, indent=1) + "\n")


class Life:
    """The command line at work in the run folder `out`; the data and its messages are in folders beside it."""

    def __init__(self, kind: str, out: Path) -> None:
        arguments = ["train", *KINDS[kind], "--data-root", DATA, "--out", out.name, "--resume", *SIZES]
        self.out, self.messages = out, out.with_name(f"{out.name}-messages")
        self.messages.mkdir(exist_ok=True)
        self._phase, self._saving = forkserver().Value("i", 0), forkserver().Value("d", 0.0)
        shared = (self._phase, self._saving)
        self.child = forkserver().Process(target=watched_command_line, args=(arguments, self.messages, shared))
        self.began = time.monotonic()
        self.child.start()

    @property
    def phase(self) -> str:
        """What the process is doing, or was doing when it ended."""
        return PHASES[self._phase.value]

    @property
    def saving(self) -> float:
        """Seconds its longest save took."""
        return self._saving.value

    def finish(self) -> float:
        """Waits for it to end by itself, well; the seconds it took."""
        self.child.join(PATIENCE)
        if self.child.exitcode != 0:
            self.child.kill()
            raise RuntimeError(f"a training ended with {self.child.exitcode}: {(self.messages / 'err').read_text()}")
        return time.monotonic() - self.began

    def strike(self, draw: random.Random, usual: float, saving: float, number: int) -> Kill | None:
        """Kills it at a moment drawn at random; None where it was over before."""
        left = STEPS - self._steps()
        aim = draw.choice(["any time", "any time", "save", "names"])
        if left and aim != "any time":
            for _ in range(draw.randint(1, left)):  # one of the saves ahead
                self._wait_for("start", "steps", "evaluation", "end")
                self._wait_for("save: the file")
            if aim == "names":
                self._wait_for("save: its names")
            time.sleep(draw.uniform(0.0, saving if aim == "save" else 0.02))
        else:
            self.child.join(draw.uniform(0.0, usual * (left + 1) / (STEPS + 1)))
        self.child.kill()
        self.child.join()
        if self.child.exitcode == 0:
            return None
        names = sorted(path.name for path in (self.out / "checkpoints").glob("*"))
        return Kill(number, round(time.monotonic() - self.began, 3), self.phase, self._steps(), names)

    def _steps(self) -> int:
        log = self.out / "log.jsonl"
        return log.read_bytes().count(b'"loss"') if log.exists() else 0

    def _wait_for(self, *phases: str) -> None:
        while self.child.is_alive() and self.phase not in phases:
            time.sleep(0.001)


def traces(out: Path) -> dict[str, str]:
    """SHA-256 of what must not depend on interruptions: checkpoints (all but the one before the last) and the log."""
    found = {path.name: path for path in (out / "checkpoints").iterdir() if path.name != "previous.pth"}
    found["log.jsonl"] = out / "log.jsonl"
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(found.items())}


def run_trial(campaign: Campaign, folder: Path, most: int) -> Trial:
    """A training that is killed up to `most` times, resumed to its end, and compared."""
    number = len(campaign.trials)
    seed, kind = campaign.seed * 1_000_000 + number, list(KINDS)[number % len(KINDS)]
    draw, began, out = random.Random(seed), time.monotonic(), folder / f"run-{seed}"
    kills: list[Kill] = []
    for attempt in range(LIVES):
        life = Life(kind, out)
        if attempt == LIVES - 1 or len(kills) == most:
            life.finish()
            break
        kill = life.strike(draw, campaign.usual[kind], campaign.saving[kind], attempt)
        if kill is None:
            break
        kills.append(kill)
    found, wanted = traces(out), campaign.wanted[kind]
    differs = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if not differs:
        shutil.rmtree(out)
    return Trial(seed, kind, kills, differs, round(time.monotonic() - began, 2))


def unbroken(campaign: Campaign, folder: Path) -> None:
    """Runs each kind without a kill, where that was not done before."""
    warm = forkserver().Process(target=time.sleep, args=(0,))  # the first process waits for the imports
    warm.start()
    warm.join()
    for kind in KINDS:
        if kind not in campaign.wanted:
            life = Life(kind, folder / kind)
            campaign.usual[kind] = life.finish()
            campaign.saving[kind], campaign.wanted[kind] = life.saving, traces(folder / kind)


def go_on(
    campaign: Campaign, kills: int, seconds: float, folder: Path, say: Callable[[Trial], Any] = lambda trial: None
) -> None:
    """Adds trials until `kills` kills have hit or the time is over; `say` is called after each."""
    end = time.monotonic() + seconds
    write_streets(folder / DATA, train=4, val=1)
    unbroken(campaign, folder)
    while campaign.kills < kills and time.monotonic() < end:
        campaign.trials.append(run_trial(campaign, folder, kills - campaign.kills))
        say(campaign.trials[-1])


def main() -> int:
    """The campaign as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, those in the report counted")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no training after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to train; a temporary folder if not given")
    parser.add_argument("--report", type=Path, default=Path("kills.json"))
    options = parser.parse_args()
    campaign = Campaign.read(options.report) if options.report.exists() else Campaign(options.seed)

    def say(trial: Trial) -> None:
        ending = f"DIFFERENT: {trial.differs}" if trial.differs else "the same"
        hit = ", ".join(kill.phase for kill in trial.kills)
        sys.stderr.write(f"{campaign.kills} kills: run {trial.seed}, {trial.kind}, killed in {hit}: {ending}\n")
        campaign.write(options.report)

    with tempfile.TemporaryDirectory(prefix="kills-", dir=options.folder) as folder:
        go_on(campaign, options.kills, options.seconds, Path(folder), say)
    figures = ", ".join(f"{count} {phase}" for phase, count in campaign.phases().items())
    sys.stdout.write(
        f"{campaign.kills} of {options.kills} kills in {len(campaign.trials)} trainings ({figures}); "
        f"{campaign.different} trainings differ from the unbroken one\n"
    )
    return 1 if campaign.different else 0


if __name__ == "__main__":
    sys.exit(main())
