"""How processes find each other, and how one waits for others: it says for whom and how long, and obeys signals."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # public, not in the stubs

from dgmn2cli.errors import ConfigError, DistributedError
from dgmn2cli.observer import Observer
from dgmn2cli.threads import aside

Result = TypeVar("Result")
LIMIT = 1800.0  # seconds that processes may start apart from each other
GAP = 0.2  # seconds between two looks for another process
SHORTEST, LONGEST = 0.0002, 0.05  # seconds between two looks at whether something is done


class Waiting:
    """Tells an observer for how long this process has waited: soon, then ever more rarely.

    Args:
        what: what it waits in, for errors.
        first: seconds before the first line.
        limit: seconds it waits.
    """

    def __init__(self, what: str, observer: Observer, first: float = 3.0, limit: float = LIMIT) -> None:
        self.what, self.limit, self._observer, self._next = what, limit, observer, first
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def look(self, line: Callable[[], str]) -> None:
        """Tells the observer `line()` and the time, where it is due.

        Raises:
            DistributedError: the limit is passed.
        """
        if self.seconds >= self._next:
            self._observer.note(f"{line()}, {self.seconds:.0f} s so far")
            self._next = min(self._next * 2, self._next + 60)
        if self.seconds > self.limit:
            raise DistributedError(self.what, why=f"{line()}, and gave up after {self.limit:.0f} s")


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
        hint = "Go on with --resume."
        raise DistributedError("the processes lost each other", why=why, hint=hint) from error


def named(ranks: Sequence[int], world: int) -> str:
    """`process 2 of 4`, `processes 2, 4 of 4`: processes are counted from 1 in messages."""
    numbers = ", ".join(str(rank + 1) for rank in ranks[:8]) + ", ..." * (len(ranks) > 8)
    return f"process{'es' * (len(ranks) != 1)} {numbers or '?'} of {world}"


def awake(work: Callable[[], Result], look: Callable[[], object]) -> Result:
    """`work()`, which blocks, in a thread of its own, so that signals reach this one, which looks again and again.

    Raises:
        DistributedError: it lost a connection.
    """
    outcome, pause = aside(work), SHORTEST
    while not wait([outcome], pause).done:
        look()
        pause = min(pause * 1.5, LONGEST)
    with lost_connections():
        return outcome.result()


def meet(rank: int, world: int, observer: Observer) -> Store:
    """What all processes of the group share, once every one is there.

    Raises:
        ConfigError: the environment does not say where they meet.
        DistributedError: some did not come, or the first one cannot listen.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        why = f"MASTER_ADDR is '{host[:60]}', MASTER_PORT is '{port[:60]}'"
        hint = "Start the processes with torchrun or --gpus, or set both."
        raise ConfigError("the processes do not know where to meet", why=why, hint=hint)
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    waiting = Waiting("the processes do not find each other", observer)
    listens = rank == 0 and not by_agent
    if not listens:
        _reach(host, int(port), waiting)

    def store() -> Store:
        return TCPStore(host, int(port), world, listens, timedelta(seconds=60), wait_for_workers=False)

    found = awake(store, lambda: waiting.look(lambda: waiting.what))
    shared = PrefixStore(f"dgmn2/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
    _all_there(shared, rank, world, f"{host}:{port}", waiting)
    return shared


def _reach(host: str, port: int, waiting: Waiting) -> None:
    """Returns when somebody listens there: torch's own attempts would write to stderr, deaf to signals."""
    while True:
        with suppress(OSError):
            socket.create_connection((host, port), timeout=1.0).close()
            return
        waiting.look(lambda: f"waiting for process 1 at {host}:{port}")
        time.sleep(GAP)


def _all_there(store: Store, rank: int, world: int, where: str, waiting: Waiting) -> None:
    with lost_connections():
        store.set(f"here/{rank}", "")
        missing = list(range(world))
        while missing := [other for other in missing if not store.check([f"here/{other}"])]:
            waiting.look(lambda: f"waiting for {named(missing, world)} at {where}")
            time.sleep(min(GAP, waiting.seconds / 4 + 0.005))
