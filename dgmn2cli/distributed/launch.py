"""Several processes on this machine: started by PyTorch's launcher, watched and ended, with one line that says why."""

from __future__ import annotations

import logging
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, active_children, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dgmn2cli.distributed.signals import SAME, SIGNALS, interrupt_once
from dgmn2cli.errors import Dgmn2Error, DistributedError, ResourceError
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import end_with_parent

Result = TypeVar("Result")
YIELD = 2.0  # seconds a process that lost its peers waits before it ends, so that the peer's death is seen first
GRACE = 10.0  # seconds the others have to end after one died
LOOK = 0.1  # seconds between two looks at the processes
DESCRIPTORS = 64, 16  # files that this process has open at most while it launches, and more for each that is launched
_CHATTY = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")


class Interrupted(Exception):  # noqa: N818
    """The processes ended because this one was told to stop; `number` is the signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"signal {number}")


class RemoteObserver:
    """The observer of the first process: hands everything to the parent's.

    Args:
        end: where to; None for a process whose progress is not shown.
    """

    def __init__(self, end: Connection | None) -> None:
        self._end = end

    def note(self, message: str) -> None:
        """As `Observer`."""
        self._send("note", message)

    def begin(self, task: str, total: float | None = None, *, done: float = 0, unit: str = "") -> None:
        """As `Observer`."""
        self._send("begin", task, total, done=done, unit=unit)

    def advance(
        self, parts: float = 1, *, done: float | None = None, total: float | None = None, detail: str = ""
    ) -> None:
        """As `Observer`."""
        self._send("advance", parts, done=done, total=total, detail=detail)

    def result(self, value: object) -> None:
        """As `Observer`."""
        self._send("result", value)

    def end(self) -> None:
        """As `Observer`."""
        self._send("end")

    def _send(self, name: str, *arguments: object, **named: object) -> None:
        if self._end is not None:
            self._end.send((name, arguments, named))


def launch(
    work: Callable[..., Result], arguments: tuple[Any, ...], processes: int, observer: Observer | None = None
) -> tuple[Result, int]:
    """Runs `work(*arguments, observer)` in that many processes of a torch.distributed job, which may then `join`.

    They are started by torchrun's launcher within this process, without restarts. SIGINT and SIGTERM are handed on to
    all of them as SIGINT, and waited for; a second signal, two seconds later or more, kills them. In a process the
    first signal raises KeyboardInterrupt, unless `work` arranges otherwise with `StopRequest`. If one dies, the others
    get SIGTERM, and SIGKILL after ten seconds. If this process dies, they end at once.

    Args:
        work: a module's function; it and its arguments are pickled.
        processes: how many, all on this machine.
        observer: told, in this process, what the first one tells the observer that `work` gets; the others' is silent.

    Returns:
        The first process's result; the first signal that was handed on, or 0.

    Raises:
        Dgmn2Error: what `work` raised in one of them.
        DistributedError: one died.
        ResourceError: they cannot be started.
        Interrupted: they ended after SIGINT or SIGTERM without a result.
    """
    require_descriptors(processes)
    with tempfile.TemporaryDirectory(prefix="dgmn2-launch-") as folder, _quiet():
        job = _Job(work, arguments, processes, folder)
        try:
            with _hand_on_signals(job) as received:
                job.run(observer or Silent())
        finally:
            job.end()
        return job.outcome(received), received[0] if received else 0


def require_descriptors(processes: int) -> None:
    """Raises ResourceError where this process may not open enough files for so many others."""
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], DESCRIPTORS[0] + DESCRIPTORS[1] * processes
    if limit != resource.RLIM_INFINITY and limit < needed:
        why = f"the limit is {limit} (ulimit -n), {processes} processes need {needed}"
        raise ResourceError("too few files may be open at a time", why=why, hint=f"Run `ulimit -n {needed}` before.")


class _Job:
    """The processes of one launch, and the thread that PyTorch's launcher runs in: this one stays awake for signals."""

    def __init__(self, work: Callable[..., Any], arguments: tuple[Any, ...], processes: int, folder: str) -> None:
        self.folder, self.count = Path(folder), processes
        self._results: dict[int, Any] = {}
        self._error: BaseException | None = None
        self._processes: set[BaseProcess] = set()
        self._others = set(active_children())
        self._reader, self._writer = Pipe(duplex=False)
        self._failed_at = 0.0
        self._arguments = (work, arguments, folder, list(warnings.filters), self._writer)
        self._thread = threading.Thread(target=self._launch, name="dgmn2-launch", daemon=True)

    def _launch(self) -> None:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.count,
            run_id=uuid.uuid4().hex,
            max_restarts=0,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder)),
        )
        try:
            self._results = elastic_launch(config, _process)(*self._arguments)
        except BaseException as error:  # noqa: BLE001  # raised again by the thread that waits
            self._error = error

    def run(self, observer: Observer) -> None:
        """Starts the processes and returns when all have ended; what they tell goes to `observer`."""
        former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the new processes inherit it, until they are ready
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        while self._thread.is_alive():
            self._hear(observer, LOOK)
            self._look()
        self._hear(observer, 0)

    def _hear(self, observer: Observer, seconds: float) -> None:
        while self._reader.poll(seconds):
            name, arguments, named = self._reader.recv()
            getattr(observer, name)(*arguments, **named)

    def _look(self) -> None:
        """Kills the processes that do not end although another one has died."""
        alive = self.alive()
        if not self._failed_at and any(process.exitcode for process in self._processes):
            self._failed_at = time.monotonic()
        if self._failed_at and time.monotonic() - self._failed_at > GRACE:
            for process in alive:
                _send(process, signal.SIGKILL)

    def alive(self) -> set[BaseProcess]:
        """Those that run."""
        found = set(active_children()) - self._others
        self._processes |= found
        return found

    def end(self) -> None:
        """Leaves no process behind, whatever ended the waiting for them."""
        began = time.monotonic()
        for process in self.alive():
            _send(process, signal.SIGINT)
        while self._thread.is_alive():
            self._thread.join(LOOK)
            if time.monotonic() - began > GRACE:
                for process in self.alive():
                    _send(process, signal.SIGKILL)
        self._reader.close()
        self._writer.close()

    def outcome(self, received: list[int]) -> Any:
        """The first process's result, or the error that says why there is none."""
        error = self._error
        if error is None:
            return self._results[0]
        if received:
            raise Interrupted(received[0]) from error
        if isinstance(error, ChildFailedError):
            raise _cause(error, self.folder, self.count) from error
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise ResourceError("the processes cannot be started", why=why) from error
        why = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        raise DistributedError("the processes cannot be started", why=why) from error


def _send(process: BaseProcess, number: signal.Signals) -> None:
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _process(
    work: Callable[..., Any], arguments: tuple[Any, ...], folder: str, filters: list[Any], end: Connection
) -> Any:
    """The life of one process; an error goes to a file, from which the parent raises it."""
    end_with_parent()
    warnings.filters[:] = filters  # type: ignore[index]  # a list at run time
    main = os.environ["RANK"] == "0"
    try:
        interrupt_once()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _prefer_loopback()
        result = work(*arguments, RemoteObserver(end if main else None))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Dgmn2Error as error:
        _leave(error, folder)
    except Exception as error:  # noqa: BLE001  # the border between processes: the parent raises it again
        lines = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
        wrapped = Dgmn2Error(f"an unforeseen failure in process {os.environ['RANK']}", why=why)
        wrapped.add_note(traceback.format_exc())  # shown by --debug
        _leave(wrapped, folder)
    return result if main else None


def _prefer_loopback() -> None:
    """The processes are on one machine; gloo need not know the machine's name on the network."""
    with suppress(OSError):
        if Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _leave(error: Dgmn2Error, folder: str) -> None:
    Path(folder, f"error-{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(error))
    if isinstance(error, DistributedError):
        time.sleep(YIELD)
    sys.exit(error.exit_code)


def _cause(error: ChildFailedError, folder: Path, processes: int) -> Dgmn2Error:
    """Why the job ended: a process's own error, else the death of one."""
    said: list[Dgmn2Error] = []
    for path in sorted(folder.glob("error-*.pickle")):
        with suppress(EOFError, pickle.UnpicklingError):  # its writer was killed
            said.append(pickle.loads(path.read_bytes()))  # written by our own process a moment ago
    own = [found for found in said if not isinstance(found, DistributedError)]
    if own:
        return own[0]
    rank, failure = error.get_first_failure()
    how = f"exit code {failure.exitcode}"
    if failure.exitcode < 0:
        with suppress(ValueError):
            how = f"ended by {signal.Signals(-failure.exitcode).name}"
    elif said:
        return said[0]
    if failure.exitcode == -signal.SIGKILL:
        how += "; the system ends processes most often for want of memory"
    return DistributedError(
        f"process {rank + 1} of {processes} died",
        why=how,
        hint="The others were stopped. Go on from what was saved with --resume.",
    )


@contextmanager
def _hand_on_signals(job: _Job) -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM go to all child processes, as SIGINT; yields those that came."""
    received: list[int] = []
    first = 0.0

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or now
        received.append(number)
        for process in job.alive():
            _send(process, signal.SIGKILL if now - first > SAME else signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield received
        return
    former = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the launcher's own log lines off the terminal; what they say ends in the one error."""
    _start_resource_tracker()
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_CHATTY)]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
