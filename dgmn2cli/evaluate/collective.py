"""Owns evaluation within a torch.distributed group: its place under torchrun, and counts put together exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dgmn2cli.errors import Dgmn2Error, DistributedError
from dgmn2cli.evaluate.tally import Tally

LONGEST_WAIT = timedelta(days=1)  # for the slowest process; a dead one is noticed at once


@dataclass(frozen=True)
class Place:
    """Where torchrun put this process: its number, how many there are, its number on this machine."""

    rank: int
    world: int
    local: int

    def device(self, asked: str) -> str:
        """The device of this process: each has its own GPU, where GPUs are asked for or found."""
        gpus = asked == "cuda" or (asked == "auto" and torch.cuda.is_available())
        return f"cuda:{self.local}" if gpus else asked


def torchrun_place() -> Place | None:
    """This process's place among several that torchrun started; None if it did not, or started one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(rank, world, local) if world > 1 else None


@contextmanager
def joined() -> Iterator[None]:
    """Within the block this process is a member of the group that torchrun's environment describes.

    Raises:
        DistributedError: the others cannot be reached.
    """
    try:
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)  # only counts travel: no GPU has to
    except (RuntimeError, ValueError) as error:
        raise DistributedError("the processes cannot find each other", why=str(error).split("\n")[0][:200]) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def combine(tally: Tally, failure: Dgmn2Error | None) -> Tally:
    """The sum of all processes' tallies, on every process of the default group.

    Args:
        tally: what this process counted.
        failure: why it could not go on; then all processes raise it, and none waits for it.

    Raises:
        Dgmn2Error: the first process's failure.
        DistributedError: a process is gone, or two counted the same picture.
    """
    parts = _gathered((tally.counts, sorted(tally.done), failure))
    for _, _, other in parts:
        if other is not None:
            raise other
    whole = Tally(tally.counts.shape[0])
    for counts, done, _ in parts:
        if whole.done & set(done):
            raise DistributedError("two processes evaluated the same pictures", why="their shares overlap")
        whole.counts += counts
        whole.done |= set(done)
    return whole


def raise_together(failure: Dgmn2Error | None) -> None:
    """Raises on every process what went wrong on any; returns, on all, if nothing did.

    Raises:
        Dgmn2Error: the first process's failure.
        DistributedError: a process is gone.
    """
    for other in _gathered(failure):
        if other is not None:
            raise other


def _gathered(value: object) -> list[Any]:
    """Every process's value, in the order of ranks, on every process."""
    parts: list[Any] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(parts, value)
    except RuntimeError as error:  # torch's DistBackendError and gloo's failures are RuntimeErrors
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DistributedError("the processes lost each other during an evaluation", why=why) from error
    return parts
