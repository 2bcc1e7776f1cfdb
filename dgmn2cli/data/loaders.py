"""Owns the order of training and evaluation: which sample comes when, from which random numbers, on which process.

Training is one endless stream of samples, numbered from 0 over all processes. Sample t shows the picture at place
t mod n of the permutation of pass t div n, and its augmentation draws from a generator seeded with (seed, t). So the
stream depends on nothing but the seed: not on the number of processes or workers, nor on where a run was interrupted.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import MAX_PIXELS
from dgmn2cli.data.transforms import Draws, Sample
from dgmn2cli.errors import Dgmn2Error, ResourceError
from dgmn2cli.runtime import end_with_parent

_ORDER, _AUGMENT = 0, 1  # the two uses of the seed, kept apart


@dataclass(frozen=True)
class TrainBatch:
    """Consecutive samples of one process: images (B, 3, H, W) float32, labels (B, H, W) uint8, the pictures' names."""

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
    """(size,) int64: the order of the pictures in pass `number` over the data."""
    return _generator(seed, _ORDER, number).permutation(size)


def sample_draws(seed: int, position: int) -> np.random.RandomState:
    """The generator of the augmentation of the sample at `position` of the stream."""
    return _generator(seed, _AUGMENT, position)


@dataclass(frozen=True)
class StreamPlace:
    """A place in the training stream: its number, and the picture that stands there."""

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
    """Reads and augments what a `StreamPlace` names; a fault travels to the main process as a value."""

    def __init__(self, data: SegmentationSet, augment: Augment, seed: int, max_pixels: int) -> None:
        self.data, self.augment, self.seed, self.max_pixels = data, augment, seed, max_pixels

    def __getitem__(self, place: StreamPlace) -> tuple[np.ndarray, np.ndarray, str] | Dgmn2Error:
        try:
            sample = self.data.read(place.index, max_pixels=self.max_pixels)
        except Dgmn2Error as error:
            return error
        image, label = self.augment(sample, sample_draws(self.seed, place.position))
        return image, label, self.data.pairs[place.index].name


def _collate(samples: Sequence[tuple[np.ndarray, np.ndarray, str] | Dgmn2Error]) -> TrainBatch | Dgmn2Error:
    good = []
    for sample in samples:
        if isinstance(sample, Dgmn2Error):
            return sample
        good.append(sample)
    images, labels, names = zip(*good, strict=True)
    return TrainBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)), names)


def _start_worker(number: int) -> None:
    """A worker does one thing at a time, and leaves Ctrl-C to the main process, which ends it, even by its death."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _unwrapped(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's values; faults that came as values are raised.

    Whatever ends it, torch's iterator is let go first: found later by the garbage collector, together with the queues
    it would say goodbye through, it waits five seconds for its workers.
    """
    batches = iter(loader)
    try:
        while True:
            batch = _next_or_fault(batches)
            if isinstance(batch, Dgmn2Error):
                raise batch
            if batch is None:
                return
            yield batch
    finally:
        del batches


def _next_or_fault(batches: Iterator[Any]) -> Any:
    """The next value, None at the end, or the fault that a dead worker is."""
    try:
        return next(batches, None)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
    why = "the system ended it, most often for want of memory or shared memory"
    return ResourceError("a data worker died", why=why, hint="Use fewer --workers, or 0.")


def train_batches(
    data: SegmentationSet,
    augment: Augment,
    stream: TrainStream,
    *,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    pin_memory: bool = False,
) -> Iterator[TrainBatch]:
    """The endless batches of one process, from `stream.start_step` on.

    Args:
        augment: as `transforms.train_transforms` gives.
        workers: processes that read ahead; the batches do not depend on it.

    Raises:
        DataError: a pair cannot be read (any more).
        ResourceError: a worker was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        _TrainSamples(data, augment, stream.seed, max_pixels),
        batch_size=stream.batch,
        sampler=stream,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own, so that starting a loader draws nothing from the global one
        pin_memory=pin_memory,
    )
    return _unwrapped(loader)


def eval_indices(size: int, rank: int = 0, world: int = 1, done: Sequence[int] = ()) -> list[int]:
    """The pairs that process `rank` of `world` evaluates: every one on exactly one process, none twice.

    Args:
        size: pairs in all.
        done: pairs that an interrupted evaluation has counted already; the rest is dealt out anew.
    """
    finished = set(done)
    return [index for index in range(size) if index not in finished][rank::world]
