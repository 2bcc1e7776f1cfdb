"""Owns evaluation on several processes of one machine: started, fed, watched and ended by this one; none is orphaned.

The processes share nothing and wait for nobody: each gets its pictures, and hands every picture's counts to the parent,
which alone adds, notes and reports. So the sum is exact for any number of processes, and a dead one is seen at once.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.errors import DistributedError
from dgmn2cli.evaluate.engine import Counted, PredictionFolder, counted_pictures
from dgmn2cli.evaluate.subject import Load
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.segmenter import RunInfo
from dgmn2cli.runtime import end_with_parent, set_threads

PATIENCE = 5.0  # seconds a process has to end when asked to


@dataclass(frozen=True)
class Ready:
    """What a process says when its network is loaded."""

    info: RunInfo
    classes: int


@dataclass(frozen=True)
class Finished:
    """What a process says when its pictures are done."""


@dataclass(frozen=True, eq=False)
class Task:
    """What each process does.

    Attributes:
        load: makes the network on a device.
        data, settings, workers, keep: as for `counted_pictures`.
        threads: CPU threads of each process.
        warnings: the parent's warning filters.
    """

    load: Load
    data: SegmentationSet
    settings: Settings
    workers: int
    keep: PredictionFolder | None
    threads: int
    warnings: list[Any]


class Solo:
    """This process alone, with a crew's manners.

    Args:
        task: what it does; its threads are set by whoever owns the process.
        device: where.
    """

    def __init__(self, task: Task, device: str) -> None:
        self._task, self._device = task, device

    def __enter__(self) -> Solo:
        self._segmenter = self._task.load(self._device)
        return self

    def __exit__(self, *problem: object) -> None:
        return None

    def ready(self) -> Ready:
        """What is loaded."""
        return Ready(self._segmenter.info, len(self._segmenter.classes.names))

    def count(self, shares: Sequence[Sequence[int]], part: Callable[[float], None]) -> Generator[Counted, None, None]:
        """The pictures at the places `shares[0]`, in order; errors as `counted_pictures`."""
        task = self._task
        return counted_pictures(
            self._segmenter, task.data, shares[0], task.settings, workers=task.workers, keep=task.keep, part=part
        )


class Crew:
    """The processes, as a context manager: whatever happens inside, none outlives the block.

    Args:
        task: what each does.
        devices: one process for each.
    """

    def __init__(self, task: Task, devices: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
        self._processes: list[BaseProcess] = []
        self._ends: list[Connection] = []
        self._task, self._devices = task, devices

    def __enter__(self) -> Crew:
        try:
            for rank, device in enumerate(self._devices):
                ours, theirs = self._context.Pipe()
                process = self._context.Process(
                    target=_serve, args=(theirs, rank, device, self._task), name=f"dgmn2-eval-{rank}"
                )
                with _ctrl_c_ignored():  # a new process inherits this, and is not hit while it still imports
                    process.start()
                theirs.close()
                self._processes.append(process)
                self._ends.append(ours)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ready(self) -> Ready:
        """What the processes loaded, once all have.

        Raises:
            Dgmn2Error: one could not.
            DistributedError: one died.
        """
        said: dict[int, Ready] = dict(self._messages(Ready))
        return said[0]

    def count(self, shares: Sequence[Sequence[int]], part: Callable[[float], None]) -> Generator[Counted, None, None]:
        """The pictures of all processes as they come, whole ones only; `shares` has the places of each process.

        Raises:
            Dgmn2Error: what one of them raised.
            DistributedError: one died.
        """
        for rank, (end, share) in enumerate(zip(self._ends, shares, strict=True)):
            try:
                end.send(list(share))
            except OSError as error:
                raise self._death(rank) from error
        for _, message in self._messages(Finished):
            if isinstance(message, Counted):
                part(1.0)
                yield message

    def _messages(self, last: type) -> Iterator[tuple[int, Any]]:
        """Messages as they come, with the number of their process, until each has sent one of type `last`."""
        open_ends = dict(enumerate(self._ends))
        while open_ends:
            for end in wait(list(open_ends.values())):
                rank = next(number for number, other in open_ends.items() if other is end)
                try:
                    message = open_ends[rank].recv()
                except (EOFError, OSError) as error:
                    raise self._death(rank) from error
                if isinstance(message, BaseException):
                    raise message
                if isinstance(message, last):
                    del open_ends[rank]
                yield rank, message

    def _death(self, rank: int) -> DistributedError:
        process = self._processes[rank]
        process.join(PATIENCE)
        code = process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):
                how = f"ended by {signal.Signals(-code).name}"
        why = f"{how}; the system ends processes most often for want of memory" if code == -9 else how
        hint = "The others were stopped. With --report, --resume goes on from where the run was."
        return DistributedError(f"process {rank + 1} of {len(self._processes)} died", why=why, hint=hint)

    def _end(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes:
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes, self._ends = [], []


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _serve(end: Connection, rank: int, device: str, task: Task) -> None:
    """A process's life: load, say so, receive places, hand over the counts of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    warnings.filters[:] = task.warnings  # type: ignore[index]  # a list at run time
    set_threads(task.threads)
    try:
        segmenter = task.load(device)
        end.send(Ready(segmenter.info, len(segmenter.classes.names)))
        share = end.recv()
        for counted in counted_pictures(
            segmenter, task.data, share, task.settings, workers=task.workers, keep=task.keep
        ):
            end.send(counted)
        end.send(Finished())
    except (EOFError, BrokenPipeError):  # the parent has closed its end: nobody wants the rest
        return
    except Exception as error:  # noqa: BLE001  # the border between processes: the parent raises it again
        _hand_over(end, rank, error)


def _hand_over(end: Connection, rank: int, error: Exception) -> None:
    error.add_note(traceback.format_exc())  # shown by --debug
    message: Exception = error
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  # any exception type may refuse to be pickled, in any way
        why = f"{type(error).__name__}: {error}"[:300]
        message = DistributedError(f"process {rank + 1} failed", why=why)
    with suppress(OSError):
        end.send(message)
