"""Work on one process or on several: started here or by torchrun, what each gives handed to the first as it comes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

from dgmn2cli.distributed.group import Group, join, launched_world, require_devices
from dgmn2cli.distributed.launch import launch
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import set_threads

Result = TypeVar("Result")
Part = TypeVar("Part")


def on_processes(
    work: Callable[..., Result],
    arguments: tuple[Any, ...],
    *,
    device: str,
    processes: int,
    threads: int | None,
    observer: Observer,
) -> Result:
    """What `work(group, observer, *arguments)` gives, here or on the processes that are asked for.

    Args:
        work: a module's function; it and its arguments are pickled where processes are started. The observer it gets
            is silent but on the first of them.
        threads: of each process; torch's, shared out, if None.

    Raises:
        Dgmn2Error: what `work` raised on one of them.
        ConfigError, ResourceError: there are not so many devices.
        DistributedError: a process died.
        KeyboardInterrupt: they ended after a signal.
    """
    require_devices(device, processes)
    given = (work, arguments, device, processes, threads)
    if processes == 1 or launched_world() > 1:
        return _on_this_process(*given, observer)
    result, number = launch(_on_this_process, given, processes, observer)
    if result is None:
        signal.raise_signal(number)  # it acts as the caller has arranged
        raise KeyboardInterrupt
    return result


def _on_this_process(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    device: str,
    processes: int,
    threads: int | None,
    observer: Observer,
) -> Any:
    set_threads(threads or max(1, set_threads(None) // processes))
    with join(device, observer) as group:
        return work(group, observer if group.main else Silent(), *arguments)


def collect(
    group: Group, parts: Callable[[], Generator[Part, None, None]], take: Callable[[Part], object], observer: Observer
) -> None:
    """Hands every process's parts to `take` on the first one, as they come; every process calls this.

    They share nothing and wait for nobody until the end. Where one fails, the others end after the part they are at.

    Args:
        parts: this process's; closed when it ends.
        observer: advanced by 1 for each part of another process.

    Raises:
        Dgmn2Error: what one process raised, on all of them.
        DistributedError: a process is gone.
    """

    def hear() -> None:
        for part in group.told():
            take(part)
            observer.advance()

    def work() -> None:
        with closing(parts()) as found:
            for part in found:
                take(part) if group.main else group.tell(part)
                hear()
                if group.given_up():
                    return

    def hear_while_waiting() -> None:
        hear()
        observer.advance(0)  # what it raises ends the waiting, too

    group.together(work, meanwhile=hear_while_waiting)
    hear()
