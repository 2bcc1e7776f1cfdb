"""The order of training and evaluation: which sample comes when, from which random numbers, read by which process.

Training is one endless stream of samples, numbered from 0 over all processes. Sample t shows the image at place
t mod n of the permutation of pass t div n, and its augmentation draws from a generator seeded with (seed, t). So the
stream depends on nothing but the seed: not on the number of processes or workers, nor on where a run was interrupted.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.transforms import Draws, Sample
from dgmn2cli.errors import Dgmn2Error, ResourceError
from dgmn2cli.runtime import end_with_parent

_ORDER, _AUGMENT = 0, 1  # the two uses of the seed, kept apart
ENDING = 5.0  # seconds that the end of the data workers may take
LOOK = 1.0  # seconds between two looks at the workers while a batch is waited for
KEPT = 1 << 25  # bytes of decoded samples that a process keeps at most
FILES = 32, 12  # that a process opens while it trains, and more for each of its workers


@dataclass(frozen=True)
class TrainBatch:
    """Consecutive samples of one process: images (B, 3, H, W) float32, labels (B, H, W) uint8, the images' names."""

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def pin_memory(self) -> TrainBatch:
        """The batch in page-locked memory; the data loader calls this where pinning is asked for."""
        return TrainBatch(self.images.pin_memory(), self.labels.pin_memory(), self.names)


def _generator(seed: int, use: int, number: int) -> np.random.RandomState:
    """A generator of its own for each use; numpy keeps what `RandomState` draws the same in all versions."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, use, number])))


def pass_order(size: int, seed: int, number: int) -> np.ndarray:
    """(size,) int64: the order of the images in pass `number` over the data."""
    return _generator(seed, _ORDER, number).permutation(size)


def sample_draws(seed: int, position: int) -> np.random.RandomState:
    """The generator of the augmentation of the sample at `position` of the stream."""
    return _generator(seed, _AUGMENT, position)


@dataclass(frozen=True)
class StreamPlace:
    """A place in the training stream: its number, and the image that stands there."""

    position: int
    index: int


class TrainStream(Sampler[StreamPlace]):
    """The endless places of one process, from a training step on.

    Step s over `world` processes takes the places s * world * batch up to (s + 1) * world * batch; the process `rank`
    gets the block rank * batch of them. The stream's whole state is the number of finished steps.
    """

    def __init__(self, size: int, seed: int, batch: int, rank: int = 0, world: int = 1, start_step: int = 0) -> None:
        if not 0 <= rank < world or size < 1 or batch < 1 or start_step < 0:
            raise ValueError(f"no stream of {size} samples, batch {batch}, step {start_step}, rank {rank} of {world}")
        self.size, self.seed, self.batch = size, seed, batch
        self.rank, self.world, self.start_step = rank, world, start_step

    def __iter__(self) -> Iterator[StreamPlace]:
        known, order = -1, np.empty(0, np.int64)
        step = self.start_step
        while True:
            first = (step * self.world + self.rank) * self.batch
            for position in range(first, first + self.batch):
                if position // self.size != known:
                    known = position // self.size
                    order = pass_order(self.size, self.seed, known)
                yield StreamPlace(position, int(order[position % self.size]))
            step += 1


Augment = Callable[[Sample, Draws], tuple[np.ndarray, np.ndarray]]


class _TrainSamples(Dataset[Any]):
    """Reads and augments what a `StreamPlace` names; a fault travels to the main process as a value.

    The samples of a small data set are decoded once, and stay in memory.
    """

    def __init__(self, data: SegmentationSet, augment: Augment, seed: int) -> None:
        self.data, self.augment, self.seed = data, augment, seed
        self._kept: dict[int, Sample] = {}

    def _read(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        sample = self.data.read(index)
        if (sample.image.nbytes + sample.label.nbytes) * len(self.data) <= KEPT:
            self._kept[index] = sample
        return sample

    def __getitem__(self, place: StreamPlace) -> tuple[np.ndarray, np.ndarray, str] | Dgmn2Error:
        try:
            sample = self._read(place.index)
            image, label = self.augment(sample, sample_draws(self.seed, place.position))
        except Dgmn2Error as error:
            return error
        except MemoryError:
            return _died("it ran out of memory")
        return image, label, self.data.pairs[place.index].name


def _collate(samples: Sequence[tuple[np.ndarray, np.ndarray, str] | Dgmn2Error]) -> TrainBatch | Dgmn2Error:
    """One batch; a worker puts it into shared memory here, where a lack of that can still be reported."""
    good = []
    for sample in samples:
        if isinstance(sample, Dgmn2Error):
            return sample
        good.append(sample)
    images, labels, names = zip(*good, strict=True)
    try:
        batch = TrainBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), names)
        if get_worker_info() is not None:
            batch.images.share_memory_()
            batch.labels.share_memory_()
    except MemoryError:
        return _died("it ran out of memory")
    except (RuntimeError, OSError) as error:  # torch says in words what the system refused
        return _no_shared_memory(error)
    return batch


def _no_shared_memory(error: Exception) -> ResourceError:
    hint = "Enlarge it (Docker: --shm-size 1g), or use --workers 0."
    what = "a data worker cannot hand over its batch"
    return ResourceError(what, where="/dev/shm", why=f"{shared_memory()}; {_first_line(error)}", hint=hint)


def shared_memory() -> str:
    """The size of /dev/shm and what is free of it, in words."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return "there is no /dev/shm"
    total, free = (found.f_frsize * blocks / 2**20 for blocks in (found.f_blocks, found.f_bavail))
    return f"{free:,.1f} of {total:,.1f} MiB are free"


def _died(why: str) -> ResourceError:
    return ResourceError("a data worker died", why=why, hint="Use fewer --workers, or 0; --resume goes on.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _start_worker(number: int) -> None:
    """A worker does one thing at a time and leaves signals to the main process, which ends it, even by its death."""
    end_with_parent()
    for ignored in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group, they would end it too early
        signal.signal(ignored, signal.SIG_IGN)
    for fatal in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE):  # torch's handlers write lines that end in a NUL
        signal.signal(fatal, signal.SIG_DFL)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def train_batches(
    data: SegmentationSet,
    augment: Augment,
    stream: TrainStream,
    *,
    workers: int = 0,
    pin_memory: bool = False,
    check: Callable[[], object] = lambda: None,
) -> Generator[TrainBatch, None, None]:
    """The endless batches of one process, from `stream.start_step` on; close it to end its workers.

    Args:
        augment: makes the network input and label of a sample, as `transforms.TrainTransform` does.
        workers: processes that read ahead; the batches do not depend on it.
        check: called about once a second while it waits for a worker; what it raises ends the waiting.

    Raises:
        DataError: a pair cannot be read (any more).
        ResourceError: a worker died, /dev/shm is too small, or too few files may be open.
    """
    loader: DataLoader[Any] = DataLoader(
        _TrainSamples(data, augment, stream.seed),
        batch_size=stream.batch,
        sampler=stream,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own, so that starting a loader draws nothing from the global one
        pin_memory=pin_memory,
        timeout=LOOK if workers else 0,
    )
    batches, started = _started(loader, workers)
    try:
        while True:
            batch = _next(batches, check) if workers else next(batches)
            if isinstance(batch, Dgmn2Error):
                raise batch
            yield batch
    finally:
        for worker in started:
            worker.kill()  # torch would wait for what each is doing
        if end := getattr(batches, "_shutdown_workers", None):
            # it takes a lock that a killed worker may have held: nobody waits for it longer than this
            ending = threading.Thread(target=end, daemon=True)
            ending.start()
            ending.join(ENDING)


def _started(loader: DataLoader[Any], workers: int) -> tuple[Iterator[Any], list[BaseProcess]]:
    """The loader's iterator and its worker processes.

    torch would raise an error wherever the main thread is when a worker dies; its handler is taken back, since the
    death is noticed here, where the next batch is waited for.
    """
    before = set(active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    _require_files(workers)
    try:
        batches = iter(loader)
    except OSError as error:
        for worker in set(active_children()) - before:
            worker.kill()
        if error.errno == errno.ENOSPC:  # no room for a lock
            raise _no_shared_memory(error) from error
        why = error.strerror or str(error)
        raise ResourceError("the data workers cannot be started", why=why, hint="Use fewer --workers, or 0.") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return batches, list(set(active_children()) - before)


def _require_files(workers: int) -> None:
    """A worker that cannot open the connection for its batch would be waited for without end."""
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], FILES[0] + FILES[1] * workers
    if workers and limit != resource.RLIM_INFINITY and limit < needed:
        raise _too_few_files(needed)


def _too_few_files(needed: int) -> ResourceError:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = f", the data workers need {needed}" if needed else ""
    hint = f"Run `ulimit -n {max(needed, 1024)}` before, or use --workers 0."
    return ResourceError(
        "too few files may be open at a time", why=f"the limit is {limit} (ulimit -n){wanted}", hint=hint
    )


def _next(batches: Iterator[Any], check: Callable[[], object]) -> Any:
    while True:
        try:
            return next(batches)
        except (OSError, EOFError) as error:  # the connection that hands over a batch ended with its worker
            check()
            if "in DataLoader worker process" in str(error):
                raise _failed(str(error)) from error
            raise _died(_first_line(error)) from error
        except RuntimeError as error:
            check()
            text = str(error)
            if "timed out" in text:
                continue
            if "Too many open files" in text or "items of ancdata" in text:
                raise _too_few_files(0) from error
            if "in DataLoader worker process" in text:
                raise _failed(text) from error
            if "DataLoader worker (pid" not in text:
                raise
            why = "the system ended it, most often for want of memory or shared memory"
            raise _died(f"{why}; /dev/shm: {shared_memory()}") from error
        except Exception as error:  # of any type: what a worker raised, in torch's words
            if isinstance(error, Dgmn2Error) or "in DataLoader worker process" not in str(error):
                raise
            check()
            raise _failed(str(error)) from error


def _failed(text: str) -> ResourceError:
    """What a worker raised, of whatever type, in one line: torch hands it on with its traceback as text."""
    hint = "--resume goes on from what was saved; --debug shows where it failed."
    return ResourceError("a data worker failed", why=text.strip().splitlines()[-1][:200], hint=hint)


def eval_indices(size: int, rank: int = 0, world: int = 1, done: Sequence[int] = ()) -> list[int]:
    """The pairs that process `rank` of `world` evaluates: every one on exactly one process, none twice.

    Args:
        size: pairs in all.
        done: pairs that an interrupted evaluation has counted already; the rest is dealt out anew.
    """
    finished = set(done)
    return [index for index in range(size) if index not in finished][rank::world]
