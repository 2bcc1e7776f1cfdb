"""Several processes on this machine: started as one group, watched and ended, with one line that says why."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import (
    Pipe,
    active_children,
    get_all_start_methods,
    get_context,
    resource_tracker,
    set_start_method,
)
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # public, not in the stubs

from dgmn2cli.distributed.signals import SIGNALS, StopRequest, interrupt_once
from dgmn2cli.errors import Dgmn2Error, DistributedError, ResourceError
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import end_with_parent

Result = TypeVar("Result")
YIELD = 2.0  # seconds a process that lost its peers waits before it ends, so that the peer's death is seen first
GRACE = 10.0  # seconds the others have to end after one died
LOOK = 0.1  # seconds between two looks at the processes
DESCRIPTORS = 64, 16  # files that this process has open at most while it launches, and more for each that is launched
_TOLD, _GAVE, _FAILED = "told", "gave", "failed"  # what a process sends: for the observer, its result, its error


class _RemoteObserver:
    """An `Observer` in the first process, which hands everything to the parent's by way of `end`."""

    def __init__(self, end: Connection) -> None:
        self._end = end

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: self._end.send((_TOLD, (name, arguments, named)))


def launch(
    work: Callable[..., Result], arguments: tuple[Any, ...], processes: int, observer: Observer = Silent()
) -> tuple[Result | None, int]:
    """Runs `work(*arguments, observer)` in that many processes of a torch.distributed job, which may then `join`.

    SIGINT and SIGTERM are handed on to all of them as SIGINT, and waited for; a second signal, two seconds later or
    more, kills them. In a process the first signal raises KeyboardInterrupt, unless `work` arranges otherwise with
    `StopRequest`. If one dies, the others get SIGTERM, and SIGKILL after ten seconds. If this process dies, they end at
    once.

    Args:
        work: a module's function; it and its arguments are pickled.
        processes: how many, all on this machine.
        observer: told, in this process, what the first one tells the observer that `work` gets; the others' is silent.

    Returns:
        The first process's result, None where they ended after a signal without one; the first signal that was handed
        on, or 0.

    Raises:
        Dgmn2Error: what `work` raised in one of them, after a signal, too: its clean-up may fail.
        DistributedError: one died.
        ResourceError: they cannot be started.
    """
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], DESCRIPTORS[0] + DESCRIPTORS[1] * processes
    if limit != resource.RLIM_INFINITY and limit < needed:
        why = f"the limit is {limit} (ulimit -n), {processes} processes need {needed}"
        raise ResourceError("too few files may be open at a time", why=why, hint=f"Run `ulimit -n {needed}` before.")
    job = _Job()
    try:
        with StopRequest(insistent=False) as stop:
            job.start(work, arguments, processes)
            job.watch(observer, stop)
    finally:
        job.end()
    if job.first_failed is not None and (job.refusals() or not stop.number):
        raise job.cause(job.first_failed)
    result = None if job.first_failed else pickle.loads(job.gave)
    return result, stop.number or 0


class _Job:
    """The processes of one launch."""

    def __init__(self) -> None:
        self.first_failed: BaseProcess | None = None
        self.gave = b""  # the first one's result, pickled
        self._processes: list[BaseProcess] = []
        self._readers: dict[Connection, int] = {}  # from the processes of these ranks, until they have ended
        self._errors: dict[int, Dgmn2Error] = {}  # by rank

    def start(self, work: Callable[..., Any], arguments: tuple[Any, ...], count: int) -> None:
        _start_resource_tracker()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the new processes inherit it, until they are ready
        try:
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # where they meet
            shared = {"MASTER_PORT": self._store.port, "TORCHELASTIC_USE_AGENT_STORE": True, "MASTER_ADDR": "127.0.0.1"}
            for rank in range(count):
                own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                reader, end = Pipe(duplex=False)
                self._readers[reader] = rank
                given = (work, arguments, list(warnings.filters), own | shared, end)
                process = get_context("spawn").Process(target=_process, args=given)
                with end:  # from now on only the process has it: its death ends the pipe
                    process.start()
                self._processes.append(process)
        except (OSError, DistError) as error:
            why = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
            raise ResourceError("the processes cannot be started", why=why) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def watch(self, observer: Observer, stop: StopRequest) -> None:
        """Returns when all have ended; what the first one tells goes to `observer`, and a signal on to all."""
        failed_at, handed_on = 0.0, False
        while alive := self.alive():
            self._hear(observer)
            if stop.again:
                _send(alive, signal.SIGKILL)
            elif stop.number and not handed_on:
                handed_on = True
                _send(alive, signal.SIGINT)
            failed = [process for process in self._processes if process.exitcode]
            if failed and not failed_at:
                self.first_failed, failed_at = min(failed, key=lambda process: process.exitcode or 0), time.monotonic()
                _send(alive, signal.SIGTERM)
            elif failed and time.monotonic() - failed_at > GRACE:
                _send(alive, signal.SIGKILL)
        while self._hear(observer):
            pass

    def _hear(self, observer: Observer) -> bool:
        """Takes what the processes send, waiting for it shortly; False where there was nothing."""
        ready = cast(list[Connection], wait(list(self._readers), LOOK))
        for reader in ready:
            try:
                kind, sent = reader.recv()
            except (EOFError, OSError, pickle.UnpicklingError):  # it has ended, perhaps within a message
                del self._readers[reader]
                reader.close()
                continue
            if kind == _TOLD:
                name, arguments, named = sent
                getattr(observer, name)(*arguments, **named)
            elif kind == _GAVE:
                self.gave = sent
            else:
                self._errors[self._readers[reader]] = pickle.loads(sent)
        if not self._readers:
            time.sleep(LOOK)
        return bool(ready)

    def alive(self) -> list[BaseProcess]:
        return [process for process in self._processes if process.is_alive()]

    def end(self) -> None:
        """Leaves no process behind, whatever ended the waiting for them."""
        for reader in self._readers:
            reader.close()
        _send(self.alive(), signal.SIGINT)
        began = time.monotonic()
        while alive := self.alive():
            alive[0].join(LOOK)
            if time.monotonic() - began > GRACE:
                _send(alive, signal.SIGKILL)

    def refusals(self) -> list[Dgmn2Error]:
        """What processes refused by themselves, and not because they lost each other or a library failed."""
        errors = (self._errors[rank] for rank in sorted(self._errors))
        return [error for error in errors if type(error) not in (Dgmn2Error, DistributedError)]

    def cause(self, failed: BaseProcess) -> Dgmn2Error:
        """Why the job ended: a process's own error, else the death of one."""
        said = [self._errors[rank] for rank in sorted(self._errors)]
        own = self.refusals() or [found for found in said if not isinstance(found, DistributedError)]
        if own:
            return own[0]
        code = failed.exitcode or 0
        how = f"exit code {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"ended by {signal.Signals(-code).name}"
        elif said:
            return said[0]
        if code == -signal.SIGKILL:
            how += "; the system ends processes most often for want of memory"
        return DistributedError(
            f"process {self._processes.index(failed) + 1} of {len(self._processes)} died",
            why=how,
            hint="The others were stopped. Go on from what was saved with --resume.",
        )


def _send(processes: list[BaseProcess], number: signal.Signals) -> None:
    for process in processes:
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _process(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    filters: list[Any],
    environment: dict[str, object],
    end: Connection,
) -> None:
    """The life of one process; its error, and the first one's result, go to the parent by way of `end`."""
    end_with_parent()
    set_start_method(get_all_start_methods()[0], force=True)  # a spawned data worker would import PyTorch again
    warnings.filters[:] = filters  # type: ignore[index]  # a list at run time
    os.environ.update({name: str(value) for name, value in environment.items()})
    try:
        interrupt_once()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if Path("/sys/class/net/lo").exists():  # gloo need not know the machine's name on the network
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        try:
            first = os.environ["RANK"] == "0"
            result = work(*arguments, cast(Observer, _RemoteObserver(end)) if first else Silent())
            if first:
                end.send((_GAVE, pickle.dumps(result)))
        except Dgmn2Error as error:
            _leave(error, end)
        except Exception as error:  # noqa: BLE001  # the border between processes: the parent raises it again
            lines = str(error).strip().splitlines()
            why = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
            wrapped = Dgmn2Error(f"an unforeseen failure in process {os.environ['RANK']}", why=why)
            wrapped.add_note(traceback.format_exc())  # shown by --debug
            _leave(wrapped, end)
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT)


def _end(code: int) -> NoReturn:
    """Ends the process without the destructors of torch, which abort it where a collective is under way."""
    for child in active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave(error: Dgmn2Error, end: Connection) -> NoReturn:
    with suppress(OSError):  # nobody listens any more
        end.send((_FAILED, pickle.dumps(error)))
    if isinstance(error, DistributedError):
        time.sleep(YIELD)
    _end(error.exit_code)


def _start_resource_tracker() -> None:
    """Starts Python's remover of what killed processes leave behind such that it does not speak of it."""
    name, before = "PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS")
    os.environ[name] = ",".join([*([before] if before else []), "ignore:resource_tracker"])
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
