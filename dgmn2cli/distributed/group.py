"""The processes that work together: who is who, which device each has, and what they tell each other."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # public, not in the stubs

from dgmn2cli.distributed.rendezvous import Waiting, awake, lost_connections, meet, named
from dgmn2cli.errors import ConfigError, Dgmn2Error, ResourceError
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import resolve_device

Result = TypeVar("Result")
PATIENCE = timedelta(hours=24)  # one may check data or save while the others wait; a dead one is noticed at once
ASKING = 10.0  # seconds of waiting after which a process says where it is


def _nothing() -> None: ...


@dataclass
class Group:
    """One process's view of all that work together; a process alone is a group of one.

    Every method raises DistributedError where a process is gone, and waits in a way that signals can end.
    """

    # rank, world: this process's number and how many there are
    rank: int
    world: int
    device: torch.device  # where this process computes
    store: Store | None = None  # what the processes share beside the collectives; None where there is only one
    observer: Observer = field(default_factory=Silent)  # told whom this process waits for, if it waits for long
    _collectives: int = 0  # begun

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def mean(self, values: Sequence[float | torch.Tensor]) -> list[float]:
        """The mean of each value over the processes."""
        numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if self.world > 1:
            self._collect(lambda: dist.all_reduce(numbers))
        return [float(number) for number in numbers / self.world]

    def gather(self, value: Result, meanwhile: Callable[[], object] = _nothing) -> list[Result]:
        """Every process's value, in the order of ranks, on every process.

        Args:
            value: what can be pickled.
            meanwhile: called again and again while this process waits.
        """
        values: list[Any] = [value] * self.world
        if self.world > 1:
            self._collect(lambda: dist.all_gather_object(values, value), meanwhile)
        return values

    def once(self, work: Callable[[], Result]) -> Result:
        """What `work` gives on the first process, on every process; the others do not run it.

        Raises:
            Dgmn2Error: what it raised, on every process.
        """
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = work()
            except Dgmn2Error as error:
                outcome[1] = error
        self._collect(lambda: dist.broadcast_object_list(outcome))
        result, failure = outcome
        if failure is not None:
            failure.told = not self.main
            raise failure
        value: Result = result
        return value

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.gather(None)

    def tell(self, value: object) -> None:
        """Leaves a value, which can be pickled, for the first process; waits for nobody."""
        assert self.store is not None
        with lost_connections():
            self.store.queue_push("told", pickle.dumps(value))
            self.store.queue_len("told")  # which is answered: then it is there, and a push is not waited for by torch

    def told(self) -> Iterator[Any]:
        """What the others have told the first process since its last call, in each one's order."""
        while self.main and self.store is not None:
            with lost_connections():
                if not self.store.queue_len("told"):
                    return
                content = self.store.queue_pop("told")
            yield pickle.loads(content)

    def given_up(self) -> bool:
        """Whether another process has given up."""
        if self.store is None:
            return False
        with lost_connections():
            return bool(self.store.check([f"given up/{self._collectives}"]))

    def together(self, work: Callable[[], Result], meanwhile: Callable[[], object] | None = None) -> Result:
        """What `work` gives on this process; every process calls this.

        Args:
            work: the others hear of its failure by `given_up`, before they are done themselves.
            meanwhile: called again and again while this process waits for the others.

        Raises:
            Dgmn2Error: what either raised on one process, on all.
        """
        result: Any = None
        begun, failures = self._collectives, list[Dgmn2Error]()

        def attempt(action: Callable[[], object]) -> Any:
            try:
                return action()
            except Dgmn2Error as error:
                failures.append(error)
                if self.store is not None:
                    with lost_connections():
                        self.store.set(f"given up/{begun}", "")

        result = attempt(work)
        found = self.gather(failures[:1], partial(attempt, meanwhile or _nothing))
        if meanwhile is not None:
            found += self.gather(failures[:1])
        for failure in (error for errors in found for error in errors):
            failure.told = not self.main
            raise failure
        value: Result = result
        return value

    def _collect(self, collective: Callable[[], object], meanwhile: Callable[[], object] = _nothing) -> None:
        """Takes part in a collective; signals are obeyed meanwhile, and a long wait is explained."""
        number, said = self._collectives, False
        self._collectives += 1
        waiting = Waiting("the processes wait for each other", self.observer, first=30.0, limit=math.inf)

        def look() -> None:
            nonlocal said
            meanwhile()
            if waiting.seconds > ASKING and self.store is not None:
                with lost_connections():
                    if not said:
                        self.store.set(f"at/{self.rank}", str(number))
                        said = True
                    waiting.look(lambda: f"waiting for {self._behind(number)}")

        awake(collective, look)

    def _behind(self, number: int) -> str:
        """The processes that have not come to collective `number` and waited there."""
        assert self.store is not None
        ranks = []
        for rank in range(self.world):
            key = f"at/{rank}"
            if not self.store.check([key]) or int(self.store.get(key)) < number:
                ranks.append(rank)
        return named(ranks, self.world)


def launched_world() -> int:
    """The number of processes this one was started among; 1 if it is alone.

    Raises:
        ConfigError: the environment variables that say so are not whole numbers that fit together.
    """
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def launched_rank() -> int:
    """This process's number among them; 0 if it is alone. Errors as `launched_world`."""
    world = launched_world()
    rank = _number("RANK") if world > 1 else 0
    if not 0 <= rank < world:
        raise ConfigError("the environment does not fit", where="RANK", why=f"it is {rank}, WORLD_SIZE is {world}")
    return rank


def _number(name: str, least: int = 0) -> int:
    text = os.environ.get(name, str(least))
    if not text.isascii() or not text.isdigit() or int(text) < least:
        hint = "torchrun sets it; unset RANK and WORLD_SIZE for a process alone."
        raise ConfigError("the environment does not fit", where=name, why=f"it is '{text[:60]}'", hint=hint)
    return int(text)


def require_devices(device: str, processes: int) -> None:
    """Makes sure, before anything is loaded, that `processes` on this machine have a device each.

    Raises:
        ConfigError: `--gpus` within torchrun, or the device named is a single one.
        ResourceError: this machine has fewer GPUs.
    """
    if launched_world() > 1:
        if processes > 1:
            why, hint = "torchrun has started the processes", "Leave out --gpus."
            raise ConfigError("--gpus within torchrun", why=why, hint=hint)
        processes = _number("LOCAL_WORLD_SIZE", 1)
    if processes == 1:
        resolve_device(device)
    elif device not in ("cpu", "auto", "cuda"):
        raise ConfigError("one device for several processes", where=f"--device {device}", why=f"--gpus is {processes}")
    elif device != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count < processes:
            found = f"this machine has {count} CUDA device{'s' * (count != 1)}"
            hint = "Use fewer --gpus, or --device cpu to run the processes on the CPU."
            why = found if count else "PyTorch finds no CUDA device"
            raise ResourceError("not enough GPUs", where=f"--gpus {processes}", why=why, hint=hint)


@contextmanager
def join(device: str, observer: Observer = Silent()) -> Iterator[Group]:
    """This process as a member of the group it was started in (or alone), the process group open for the block.

    The GPU of a process is the one of its number on its machine. Tensors on GPUs travel by NCCL, all others by gloo.

    Args:
        observer: told whom this process waits for.

    Raises:
        ConfigError, ResourceError: no such device, or not enough of them.
        DistributedError: the processes do not find each other.
    """
    world, rank = launched_world(), launched_rank()
    if world == 1:
        yield Group(0, 1, resolve_device(device))
        return
    require_devices(device, 1)
    own = resolve_device("auto" if device == "cuda" else device)
    if own.type == "cuda":
        own = torch.device("cuda", _number("LOCAL_RANK"))
        torch.cuda.set_device(own)
    store = meet(rank, world, observer)
    waiting = Waiting("connecting the processes", observer)
    awake(lambda: _connect(store, rank, world, own), lambda: waiting.look(lambda: waiting.what))
    try:
        yield Group(rank, world, own, store, observer)
    finally:
        dist.destroy_process_group()


def _connect(store: Store, rank: int, world: int, device: torch.device) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    rendezvous = PrefixStore("group", store)
    dist.init_process_group(backend, store=rendezvous, rank=rank, world_size=world, timeout=PATIENCE)
    if device.type == "cuda":  # makes NCCL's connections, which blocks, in the thread that may block
        torch.cuda.set_device(device)
        dist.all_reduce(torch.zeros(1, device=device))
        torch.cuda.synchronize(device)
