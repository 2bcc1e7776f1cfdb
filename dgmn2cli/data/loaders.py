"""The order of training and evaluation: which sample comes when, from which random numbers, read by which process.

Training is one endless stream of samples, numbered from 0 over all processes. Sample t shows the image at place
t mod n of the permutation of pass t div n, and its augmentation draws from a generator seeded with (seed, t). So the
stream depends on nothing but the seed: not on the number of processes or workers, nor on where a run was interrupted.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing import active_children
from pathlib import Path

import cv2
import numpy as np
import torch

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.transforms import Draws, Sample
from dgmn2cli.errors import Dgmn2Error, ResourceError, shortened
from dgmn2cli.runtime import end_with_parent

_ORDER, _AUGMENT = 0, 1  # the two uses of the seed, kept apart
LOOK = 1.0  # seconds between two looks at the workers while a batch is waited for
KEPT = 1 << 25  # bytes of decoded samples that a process keeps at most
LONGEST = 56  # bytes of a folder's path; a worker's socket is 47 bytes further down, and systems allow some 104
FILES = 32, 12  # that a process opens while it trains, and more for each of its workers


@dataclass(frozen=True)
class TrainBatch:
    """Consecutive samples of one process: images (B, 3, H, W) float32, labels (B, H, W) uint8, the images' names."""

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def pin_memory(self) -> TrainBatch:
        """The batch in page-locked memory."""
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


class TrainStream:
    """The endless places of one process, a list for each of its batches, from a training step on.

    Step s over `world` processes takes the places s * world * batch up to (s + 1) * world * batch; the process `rank`
    gets the block rank * batch of them. The stream's whole state is the number of finished steps.
    """

    def __init__(self, size: int, seed: int, batch: int, rank: int = 0, world: int = 1, start_step: int = 0) -> None:
        if not 0 <= rank < world or size < 1 or batch < 1 or start_step < 0:
            raise ValueError(f"no stream of {size} samples, batch {batch}, step {start_step}, rank {rank} of {world}")
        self.size, self.seed, self.batch = size, seed, batch
        self.rank, self.world, self.start_step = rank, world, start_step

    def __iter__(self) -> Iterator[list[StreamPlace]]:
        known, order = -1, np.empty(0, np.int64)
        for step in count(self.start_step):
            first, places = (step * self.world + self.rank) * self.batch, []
            for position in range(first, first + self.batch):
                if position // self.size != known:
                    known = position // self.size
                    order = pass_order(self.size, self.seed, known)
                places.append(StreamPlace(position, int(order[position % self.size])))
            yield places


Augment = Callable[[Sample, Draws], tuple[np.ndarray, np.ndarray]]


class _Reader:
    """Reads and augments what `StreamPlace`s name; the samples of a small data set are decoded once, and kept."""

    def __init__(self, data: SegmentationSet, augment: Augment, seed: int) -> None:
        self.data, self.augment, self.seed = data, augment, seed
        self._kept: dict[int, Sample] = {}

    def batch(self, places: Sequence[StreamPlace]) -> TrainBatch:
        """The samples at some places of the stream."""
        try:
            pairs = [self.sample(place) for place in places]
            images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
        except MemoryError as error:
            raise _died("it ran out of memory") from error
        return TrainBatch(images, labels, tuple(self.data.pairs[place.index].name for place in places))

    def sample(self, place: StreamPlace) -> tuple[np.ndarray, np.ndarray]:
        """The network input and label of one sample."""
        sample = self._kept.get(place.index) or self.data.read(place.index)
        if (sample.image.nbytes + sample.label.nbytes) * len(self.data) <= KEPT:
            self._kept[place.index] = sample
        return self.augment(sample, sample_draws(self.seed, place.position))


_reader: _Reader | None = None  # of a data worker


def _start_worker(reader: _Reader, folder: str) -> None:
    """A worker does one thing at a time and leaves Ctrl-C to the main process, which ends it, even by its death.

    Args:
        folder: for the socket by which it hands over batches; it goes with the main process.
    """
    global _reader
    _reader, tempfile.tempdir = reader, folder
    with suppress(FileNotFoundError):  # there is no need of it any more
        _sign(folder, os.getpid()).touch()
    end_with_parent(partial(shutil.rmtree, folder, ignore_errors=True))
    os.setpgid(0, 0)  # a signal that the main process's group gets would end it too early
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so the pool ends its workers when one died, and waits for them
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _sign(folder: str, pid: int) -> Path:
    """The file by which a worker says that it is one."""
    return Path(folder, f"worker-{pid}")


def _read(places: Sequence[StreamPlace]) -> TrainBatch:
    """What a worker does for one batch: it is read into shared memory."""
    assert _reader is not None
    try:
        batch = _reader.batch(places)
    except Dgmn2Error:
        raise
    except Exception as error:  # of any type: it leaves the process in one line
        why = shortened(f"{type(error).__name__}: {error}".splitlines()[0])
        raise ResourceError("a data worker failed", why=why, hint="--resume goes on from what was saved.") from error
    try:
        batch.images.share_memory_()
        batch.labels.share_memory_()
    except (RuntimeError, OSError) as error:  # torch says in words what the system refused
        hint = "Enlarge it (Docker: --shm-size 1g), or use --workers 0."
        why = f"{shared_memory()}; {str(error).splitlines()[0]}"
        raise ResourceError("a data worker cannot hand over its batch", where="/dev/shm", why=why, hint=hint) from error
    return batch


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
        augment: makes the network input and label of a sample, as `transforms.Augmentation` does.
        workers: processes that read ahead, two batches each; the batches do not depend on it.
        pin_memory: put them into page-locked memory, from which copies to a GPU need not be waited for.
        check: called about once a second while it waits for a worker; what it raises ends the waiting.

    Raises:
        DataError: a pair cannot be read (any more).
        ResourceError: a worker died, /dev/shm is too small, or too few files may be open.
    """
    reader = _Reader(data, augment, stream.seed)
    if not workers:
        for places in stream:
            batch = reader.batch(places)
            yield batch.pin_memory() if pin_memory else batch
    waiting = deque[Future[TrainBatch]]()
    with _started(reader, workers) as pool, _pinning() if pin_memory else nullcontext() as pinning:
        try:
            for places in stream:
                read = pool.submit(_read, places)
                waiting.append(read if pinning is None else pinning.submit(_pinned, read))
                if len(waiting) > 2 * workers:
                    yield _result(waiting.popleft(), check)
        except BrokenProcessPool as error:
            check()
            why = f"it was killed or crashed, most often for want of memory (/dev/shm: {shared_memory()})"
            raise _died(why) from error


@contextmanager
def _started(reader: _Reader, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that hold `reader`; in the end they are killed: nobody waits for what each is doing."""
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], FILES[0] + FILES[1] * workers
    if limit != resource.RLIM_INFINITY and limit < needed:  # one that cannot open what it needs would be waited for
        why = f"the limit is {limit} (ulimit -n), the data workers need {needed}"
        hint = f"Run `ulimit -n {max(needed, 1024)}` before, or use --workers 0."
        raise ResourceError("too few files may be open at a time", why=why, hint=hint)
    pool, folder = None, ""
    try:
        try:
            usual = tempfile.gettempdir()
            folder = tempfile.mkdtemp(prefix="dgmn2-", dir=usual if len(os.fsencode(usual)) <= LONGEST else "/tmp")
            pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(reader, folder))
            pool.submit(os.getpid)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            reason = getattr(error, "strerror", None) or error
            why, hint = f"{reason}; /dev/shm: {shared_memory()}", "Use fewer --workers, or 0."
            raise ResourceError("the data workers cannot be started", why=why, hint=hint) from error
        yield pool
    finally:
        for child in active_children():  # a worker that is none yet ends by itself, as it finds no work
            if child.pid is not None and _sign(folder, child.pid).exists():
                child.kill()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _pinning() -> Iterator[ThreadPoolExecutor]:
    """A thread that puts batches into page-locked memory while the GPU computes."""
    pool = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pinned(read: Future[TrainBatch]) -> TrainBatch:
    return read.result().pin_memory()


def _result(read: Future[TrainBatch], check: Callable[[], object]) -> TrainBatch:
    while not wait([read], LOOK).done:
        check()
    try:
        return read.result()
    except OSError as error:
        hint = "Use --workers 0; --resume goes on."
        raise ResourceError("a data worker cannot hand over its batch", why=str(error), hint=hint) from error


def eval_indices(size: int, rank: int = 0, world: int = 1, done: Sequence[int] = ()) -> list[int]:
    """The pairs that process `rank` of `world` evaluates: every one on exactly one process, none twice.

    Args:
        size: pairs in all.
        done: pairs that an interrupted evaluation has counted already; the rest is dealt out anew.
    """
    finished = set(done)
    return [index for index in range(size) if index not in finished][rank::world]
