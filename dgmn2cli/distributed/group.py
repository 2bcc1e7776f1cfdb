"""Owns the processes that train together: who is who, and the few things they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dgmn2cli.errors import ConfigError, Dgmn2Error, DistributedError, ResourceError
from dgmn2cli.runtime import resolve_device

Result = TypeVar("Result")
PATIENCE = timedelta(hours=2)  # one process may check data or save while the others wait


@dataclass(frozen=True)
class Team:
    """One process's view of all that train together; a process alone is a team of one.

    Attributes:
        rank, world: this process's number and how many there are.
        device: where this process computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def mean(self, values: Sequence[float | torch.Tensor]) -> list[float]:
        """The mean of each value over the processes.

        Raises:
            DistributedError: a process is gone.
        """
        if self.world == 1:
            return [float(value) for value in values]
        numbers = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        with lost_connections():
            dist.all_reduce(numbers)
        return [float(number) for number in (numbers / self.world).cpu()]

    def gather(self, value: Result) -> list[Result]:
        """Every process's value, in the order of ranks, on every process.

        Raises:
            DistributedError: a process is gone.
        """
        if self.world == 1:
            return [value]
        parts: list[Any] = [None] * self.world
        with lost_connections():
            dist.all_gather_object(parts, value)
        return parts

    def once(self, work: Callable[[], Result]) -> Result:
        """What `work` gives on the first process, on every process; the others do not run it.

        Raises:
            Dgmn2Error: what it raised, on every process.
            DistributedError: a process is gone.
        """
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = work()
            except Dgmn2Error as error:
                outcome[1] = error
        with lost_connections():
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            outcome[1].told = not self.main
            raise outcome[1]
        result: Result = outcome[0]
        return result

    def wait(self) -> None:
        """Returns when every process has come here.

        Raises:
            DistributedError: a process is gone.
        """
        self.gather(None)


@contextmanager
def lost_connections() -> Iterator[None]:
    """Turns what torch.distributed raises when a process is gone into a DistributedError."""
    try:
        yield
    except RuntimeError as error:
        # torch's own kinds are RuntimeErrors; gloo's failures are bare ones that name its source files
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in ("gloo", "NCCL")):
            raise
        lines = str(error).strip().splitlines()
        why = lines[0][:200] if lines else type(error).__name__
        hint = "Go on from the newest checkpoint with --resume."
        raise DistributedError("the processes of the training lost each other", why=why, hint=hint) from error


def launched_world() -> int:
    """The number of processes torchrun started this one among; 1 if it did not."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def devices_for(device: str, processes: int) -> list[str]:
    """The device of each process.

    Raises:
        ResourceError: this machine has fewer GPUs.
        ConfigError: the device named is a single one.
    """
    if processes == 1:
        return [device]
    if device == "cpu":
        return ["cpu"] * processes
    if device not in ("auto", "cuda"):
        raise ConfigError("one device for several processes", where=f"--device {device}", why=f"--gpus is {processes}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < processes:
        found = f"this machine has {count} CUDA device{'s' * (count != 1)}" if count else "PyTorch finds no CUDA device"
        hint = "Use fewer --gpus, or --device cpu to run the processes on the CPU."
        raise ResourceError("not enough GPUs", where=f"--gpus {processes}", why=found, hint=hint)
    return [f"cuda:{index}" for index in range(processes)]


def require_devices(device: str, processes: int) -> None:
    """Makes sure, before anything is loaded, that `processes` on this machine have a device each.

    Raises:
        ConfigError: the device named is a single one.
        ResourceError: this machine has fewer GPUs.
    """
    if processes == 1:
        resolve_device(device)
    else:
        devices_for(device, processes)


@contextmanager
def join_team(device: str, patience: timedelta = PATIENCE) -> Iterator[Team]:
    """This process as a member of the team torchrun started (or alone), its process group open for the block.

    The GPU of a process is the one of its number on its machine; processes on CPUs talk through gloo, on GPUs through
    NCCL.

    Raises:
        ConfigError, ResourceError: no such device, or not enough of them.
        DistributedError: the processes do not find each other.
    """
    world = launched_world()
    if world == 1:
        yield Team(0, 1, resolve_device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    require_devices(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    place = resolve_device("auto" if device == "cuda" else device)
    if place.type == "cuda":
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    with lost_connections():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=patience)
    try:
        yield Team(rank, world, place)
    finally:
        dist.destroy_process_group()
