"""Owns starting several processes on this machine by PyTorch's own launcher, and saying in one line why they ended."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dgmn2cli.errors import Dgmn2Error, DistributedError

Result = TypeVar("Result")
YIELD = 2.0  # seconds a process that lost its peers waits before it ends, so that the peer's death is seen first
_CHATTY = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")
_HANG_UP = "SIGHUP"  # the one signal left to the launcher


class Interrupted(Exception):  # noqa: N818
    """The processes ended because this one was told to stop; `number` is the signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"signal {number}")


def launch(work: Callable[..., Result], arguments: tuple[Any, ...], processes: int) -> tuple[Result, int]:
    """Runs `work(*arguments)` in that many processes of a torch.distributed job.

    They are started by torchrun's launcher within this process, without restarts. SIGINT and SIGTERM are handed on to
    all of them as SIGINT, and waited for: `work` decides how to end. If one dies, SIGTERM ends the others at once.

    Args:
        work: a module's function; it and its arguments are pickled.
        processes: how many, all on this machine.

    Returns:
        The first process's result; the first signal that was handed on, or 0.

    Raises:
        Dgmn2Error: what `work` raised in one of them.
        DistributedError: one died.
        Interrupted: they ended after SIGINT or SIGTERM without a result.
    """
    with tempfile.TemporaryDirectory(prefix="dgmn2-launch-") as folder, _hand_on_signals() as received, _quiet():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            max_restarts=0,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle=_HANG_UP,
        )
        hang_up = signal.getsignal(signal.SIGHUP)
        try:
            filters = list(warnings.filters)
            results = elastic_launch(config, _process)(work, arguments, folder, filters)
        except ChildFailedError as error:
            if received:
                raise Interrupted(received[0]) from error
            raise _cause(error, Path(folder), processes) from error
        except SignalException as error:
            raise Interrupted(int(error.sigval)) from error
        finally:
            signal.signal(signal.SIGHUP, hang_up)
    result: Result = results[0]
    return result, received[0] if received else 0


def _process(work: Callable[..., Any], arguments: tuple[Any, ...], folder: str, filters: list[Any]) -> Any:
    """The life of one process; an error goes to a file, from which the parent raises it."""
    parent = os.getppid()
    warnings.filters[:] = filters  # type: ignore[index]  # a list at run time
    _prefer_loopback()
    try:
        result = work(*arguments)
    except Dgmn2Error as error:
        _leave(error, folder)
    except Exception as error:  # noqa: BLE001  # the border between processes: the parent raises it again
        lines = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
        wrapped = Dgmn2Error(f"an unforeseen failure in process {os.environ['RANK']}", why=why)
        wrapped.add_note(traceback.format_exc())  # shown by --debug
        _leave(wrapped, folder)
    if os.getppid() != parent:
        os._exit(0)  # nobody is left to take the result, and the launcher would wait for that
    return result if os.environ["RANK"] == "0" else None


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
        hint="The others were stopped. Go on from the newest checkpoint with --resume.",
    )


@contextmanager
def _hand_on_signals() -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM go to all child processes, as SIGINT; yields those that came."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)

    former = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
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
