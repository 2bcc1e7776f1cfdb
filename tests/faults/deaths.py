"""Trainings whose data workers, or processes that train together, die at random: one line, in time, and resumable.

Signals to the main process and to its group: tests/training/end_campaign.py.
"""

from __future__ import annotations

import errno
import importlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from training.small_trainings import write_streets

from dgmn2cli.data import loaders
from dgmn2cli.errors import DataError
from faults.sandbox import Box, Call, judge
from faults.verdicts import RIGHT, Faults, Kind, Violation

STEPS, LIMIT, PATIENCE = 3, 30.0, 400.0
TRAIN = (
    "train", "setr_naive-tiny", "--data-root", "data", "--out", "out/run", "--from", "scratch", "--crop", "64",
    "--scale", "96x64", "--window", "64", "--stride", "48", "--batch-size", "1", "--threads", "1", "--device", "cpu",
    "--max-iters", str(STEPS), "--val-every", "0", "--save-every", "2",
)  # fmt: skip


def _raise(error: BaseException) -> None:
    raise error


def _end(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# what happens where a sample is read, whether only in a worker, and the documented exit codes
IN_READING: dict[str, tuple[Callable[[], None], bool, set[int]]] = {
    "SIGKILL": (_end(signal.SIGKILL), True, {5}),
    "SIGSEGV": (_end(signal.SIGSEGV), True, {5}),
    "SIGABRT": (_end(signal.SIGABRT), True, {5}),
    "SIGTERM": (_end(signal.SIGTERM), True, {5}),
    "SIGINT": (_end(signal.SIGINT), True, {0}),  # a worker leaves it to the main process
    "exit": (lambda: os._exit(3), True, {5}),
    "no memory": (lambda: _raise(MemoryError()), False, {5}),
    "a failing disk": (lambda: _raise(OSError(errno.EIO, os.strerror(errno.EIO))), True, {5}),
    "a bad image": (lambda: _raise(DataError("the image is damaged")), False, {6}),
}


@dataclass(frozen=True)
class Death:
    """How one training is hit: a key of `IN_READING`, its number of workers, the number of the sample."""

    how: str
    workers: int
    moment: int

    def __str__(self) -> str:
        return f"{self.how}, {self.workers} workers, sample {self.moment}"

    @property
    def codes(self) -> set[int]:
        """The exit codes that fit."""
        return IN_READING[self.how][2]

    @property
    def options(self) -> tuple[str, ...]:
        """Of the training."""
        return "--workers", str(self.workers)

    def prepare(self, struck: Path) -> None:
        """Done in the training's process before it begins; `struck` will say when it happened."""
        action, in_worker, _ = IN_READING[self.how]
        real = loaders._Reader.sample

        def read(reader: Any, place: loaders.StreamPlace) -> Any:
            augment = reader.augment

            def hit(*given: Any) -> Any:
                struck.write_text(repr(time.monotonic()))
                action()
                return augment(*given)

            if place.position == self.moment and (parent_process() is not None or not in_worker):
                reader.augment = hit
            try:
                return real(reader, place)
            finally:
                reader.augment = augment

        loaders._Reader.sample = read  # type: ignore[method-assign]


@dataclass(frozen=True)
class RankDeath:
    """How a training on two processes is hit: a signal to one of them, some seconds after so many steps."""

    number: signal.Signals
    rank: int
    steps: int
    pause: float

    codes = frozenset((8, 0))  # 0: it was over before
    options = "--workers", "0", "--gpus", "2"

    def __str__(self) -> str:
        return f"{self.number.name} to process {self.rank + 1} of 2, {self.pause:.2f} s after {self.steps} steps"

    def prepare(self, struck: Path) -> None:
        """As `Death.prepare`; a thread waits for the moment."""

        def strike() -> None:
            log = Path("out/run/log.jsonl")
            while len(ranks := _ranks()) < 2 or (log.read_bytes().count(b'"loss"') if log.exists() else 0) < self.steps:
                time.sleep(0.005)
            time.sleep(self.pause)
            struck.write_text(repr(time.monotonic()))
            with suppress(ProcessLookupError):
                os.kill(ranks[self.rank], self.number)

        threading.Thread(target=strike, daemon=True).start()


def _ranks() -> list[int]:
    """The processes that this one has started to train together."""
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    found = []
    for pid in children:
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return sorted(found)


def _outcome(box: Box) -> tuple[dict[str, torch.Tensor], bytes]:
    run = box.work / "out" / "run"
    saved = torch.load(run / "checkpoints" / "last.pth", weights_only=True)
    return saved["state_dict"], (run / "log.jsonl").read_bytes()


def draw(chance: random.Random) -> Death:
    """A training and what happens to it."""
    workers = chance.choice((1, 1, 2, 0))
    possible = [how for how, (_, in_worker, _) in IN_READING.items() if workers or not in_worker]
    return Death(chance.choice(possible), workers, chance.randrange(STEPS))


def draw_rank(chance: random.Random) -> RankDeath:
    """Early deaths meet the processes while they start."""
    steps = chance.randrange(STEPS)
    pause = chance.uniform(0, 0.3 if steps else 8.0)
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT))
    return RankDeath(number, chance.randrange(2), steps, pause)


def deaths(
    rng: random.Random, folder: Path, count: int, draw: Callable[[random.Random], Death | RankDeath] = draw
) -> Faults:
    """As said above; resumed, each training ends with the weights and the log of one to which nothing happened."""
    for name in ("torch._dynamo", "matplotlib.figure", "dgmn2cli.cli.train", "dgmn2cli.training.run"):
        importlib.import_module(name)  # once, not in each training
    box, whole = Box(folder / "box"), dict[tuple[str, ...], tuple[dict[str, torch.Tensor], bytes]]()
    write_streets(folder / "data", train=2, val=1)

    def fresh() -> Box:
        shutil.copytree(folder / "data", box.make().work / "data")
        return box

    def call(
        death: Death | RankDeath, codes: Collection[int], *more: str, prepare: Callable[[], object] = lambda: None
    ) -> Call:
        fonts = {"MPLCONFIGDIR": str(folder / "fonts")}  # matplotlib looks for fonts once, not in each training
        may_write = ("a/b/desk/out", "cache", "tmp")  # Python's own clean-up is left out where a forked process ends
        arguments = (*TRAIN, *death.options, *more)
        return Call(arguments, codes, fonts, may_write=may_write, prepare=prepare, limit=PATIENCE)

    for index in range(count):
        death = draw(rng)

        def judge_one(death: Death | RankDeath = death) -> str:
            world = death.options[2:]  # on which the weights depend
            if world not in whole:
                judge(fresh(), call(death, {0}))
                whole[world] = _outcome(box)
            struck = folder / "struck"
            struck.unlink(missing_ok=True)
            outcome = judge(fresh(), call(death, death.codes, prepare=lambda: death.prepare(struck)))
            if outcome != RIGHT or isinstance(death, Death):
                seconds = time.monotonic() - float(struck.read_text())
                if seconds > LIMIT:
                    raise Violation(f"it ended {seconds:.0f} s after {death}")
            if outcome != RIGHT:
                judge(box, call(death, {0}, "--resume"))
            weights, log = _outcome(box)
            expected, lines = whole[world]
            if log != lines or any(not torch.equal(value, expected[name]) for name, value in weights.items()):
                raise Violation("the resumed training ends otherwise than the unbroken one")
            return outcome

        yield f"{index} {death}", judge_one


KINDS = (
    Kind("death of a data worker", deaths, 20, 0, patience=1500, forks=True),
    Kind("death of a process of a training", partial(deaths, draw=draw_rank), 12, 0, patience=1500, forks=True),
)
