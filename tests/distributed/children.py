"""What the processes of the tests do; a module of its own so that spawned processes can import it."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch

from dgmn2cli.distributed.group import Group, join
from dgmn2cli.distributed.signals import StopRequest
from dgmn2cli.errors import NonFiniteError, ResourceError
from dgmn2cli.observer import Observer, Silent


def work(how: str, observer: Observer) -> Any:
    """One process of a launched group; `how` names a function below."""
    torch.set_num_threads(1)
    with join("cpu", observer) as group:
        return globals()[how](group, observer)


def threads(group: Group, observer: Observer) -> list[int]:
    """The CPU threads of each process."""
    return group.gather(torch.get_num_threads())


def talk(group: Group, observer: Observer) -> dict[str, Any]:
    """Every collective once."""
    observer.begin("talking", 2)
    observer.advance(detail=f"rank {group.rank}")
    if not group.main:
        for word in ("one", "two"):
            group.tell(word)
    mean = group.mean([group.rank, torch.tensor(3.0)])
    gathered = group.gather("x" * (group.rank + 1))
    once = group.once(lambda: ("by", group.rank))
    group.wait()
    return {"mean": mean, "gathered": gathered, "once": once, "told": list(group.told()), "again": list(group.told())}


def refuse(group: Group, observer: Observer) -> None:
    """The first process fails; the others hear of it."""

    def fail() -> None:
        raise NonFiniteError("the loss is not a finite number", where="step 3", faults=["a", "b"])

    group.once(fail)


def odd(group: Group, observer: Observer) -> None:
    """Something unforeseen."""
    if not group.main:
        raise KeyError("something unforeseen")
    group.wait()


def killed_waiting(group: Group, observer: Observer) -> None:
    """The second process dies while the first waits for it."""
    if not group.main:
        os.kill(os.getpid(), signal.SIGKILL)
    group.wait()


def killed_busy(group: Group, observer: Observer) -> None:
    """The second process dies while the first is busy with itself and deaf."""
    if not group.main:
        os.kill(os.getpid(), signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)


def stopped(group: Group, observer: Observer) -> None:
    """The first process cannot do what is left to do after a signal."""
    with StopRequest(insistent=False) as stop:
        group.wait()
        observer.note("waiting for a signal")
        while stop.number is None:
            time.sleep(0.01)

    def fail() -> None:
        raise ResourceError("cannot write the file", why="the disk is full")

    group.once(fail)


def lag(group: Group, observer: Observer) -> None:
    """The first process waits for the second, which does not come."""
    observer.note(f"{os.getpid()}")
    if not group.main:
        time.sleep(60)
    group.wait()


def give_up_waiting(group: Group, observer: Observer) -> list[str]:
    """The first process waits for the second, busy one, until it has had enough: both end with its reason."""
    looks = 0

    def work() -> None:
        for _ in range(0 if group.main else 600):
            time.sleep(0.1)
            if group.given_up():
                return
        assert group.main, "nobody gave up"

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise NonFiniteError(f"enough of process {group.rank}")

    said = []
    try:
        group.together(work, meanwhile=look if group.main else lambda: None)
    except NonFiniteError as error:
        said.append(str(error))
    return group.gather(said)[1] + said


def say(what: object) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


class Printing(Silent):
    """Says what it is told."""

    def note(self, message: str) -> None:
        """As `Observer`."""
        say(message)


if __name__ == "__main__":
    try:
        with join("cpu", Printing()) as alone_or_not:
            say(alone_or_not.gather(alone_or_not.rank))
    except KeyboardInterrupt:
        sys.exit(130)
