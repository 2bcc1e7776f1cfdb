"""`--batch-size auto`: as many images as the memory holds, found by trial on the device, before a training begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dgmn2cli.config import Config
from dgmn2cli.data.loaders import TrainBatch
from dgmn2cli.distributed.group import Group
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.observer import Observer
from dgmn2cli.runtime import PeakMeter, available_memory, can_measure, is_out_of_memory, return_large_blocks
from dgmn2cli.training.prepare import Training, build_network, require_normal_batches
from dgmn2cli.training.step import Stepper

SHARE = 0.8  # of the memory that is free, or of the batch that just fits a GPU: the rest is for what grows later
ENOUGH = 1 << 29  # bytes of a step from which on its memory grows evenly with the batch
SAMPLE_BYTES = 13  # per pixel of a batch that waits: the image in float32, the label


def with_batch_size(training: Training, group: Group, observer: Observer) -> Training:
    """`training` with its batch size; where that is to be measured, the one that every process can hold.

    Raises:
        ConfigError: memory cannot be measured on this device, or the batch is too small for its crop.
    """
    config = training.config
    if config.train.batch_size:
        return training
    most = len(training.train)
    observer.begin("measuring the memory of a step")
    if not can_measure(group.device):
        raise ConfigError(
            "the batch size cannot be found",
            where=f"device {group.device}",
            why="that needs Linux's /proc, or an NVIDIA GPU",
            hint="Give a number as --batch-size.",
        )
    measure = _on_cpu if group.device.type == "cpu" else _on_gpu
    alone, backend = Group(0, 1, group.device), str(training.environment["backend"])
    mine = group.together(lambda: measure(config, backend, alone, group.world, most))
    observer.end()
    size = min(group.gather(mine))
    note = f"Batch size {size}: as many as fit into memory" + (", or as there are images." if size == most else ".")
    config = replace(config, train=replace(config.train, batch_size=size))
    require_normal_batches(config, group.world)
    return replace(training, config=config, notes=(*training.notes, note))


def _on_cpu(config: Config, backend: str, alone: Group, processes: int, most: int) -> int:
    """By the bytes that images take beside the weights, in the share of the free memory that a process may have.

    Batches are doubled until they take enough for what the allocator holds back not to matter.
    """
    return_large_blocks()
    free = available_memory() * SHARE / processes
    waiting = (1 + 2 * config.data.workers) * SAMPLE_BYTES * config.augment.crop**2

    def peak(images: int, stepper: Stepper | None = None) -> int:
        with PeakMeter(alone.device) as meter:
            _try(stepper or _stepper(config, backend, alone), images)
        assert meter.peak is not None
        return meter.peak

    first = peak(2)  # with the weights, and the moments that the first step makes
    stepper = _stepper(config, backend, alone)
    _try(stepper, 2)
    images, high = 2, peak(2, stepper)
    weights = max(first - high, 0)
    while True:
        low, high = high, peak(2 * images, stepper)
        image = max((high - low) / images, 1)
        images *= 2
        left = free - weights - high - images * waiting
        if high >= ENOUGH or images >= most or left < images * image:
            return min(max(images + int(left // (image + waiting)), 1), most)


def _on_gpu(config: Config, backend: str, alone: Group, processes: int, most: int) -> int:
    """By trying."""
    stepper = _stepper(config, backend, alone)

    def fits(images: int) -> bool:
        try:
            _try(stepper, images)
        except (RuntimeError, ResourceError) as error:
            if not (isinstance(error, ResourceError) or is_out_of_memory(error)):
                raise
            return False
        finally:
            stepper.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return True

    found = largest(fits, most)
    return found if found == most else max(int(SHARE * found), 1)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, if all smaller ones do; 1 is not tried."""
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _stepper(config: Config, backend: str, alone: Group) -> Stepper:
    return Stepper(config, build_network(config, backend).to(alone.device), alone)


def _try(stepper: Stepper, images: int) -> None:
    crop = stepper.config.augment.crop
    pixels = torch.zeros(images, 3, crop, crop)
    labels = torch.zeros(images, crop, crop, dtype=torch.uint8)
    stepper.step(0, [TrainBatch(pixels, labels, ("",) * images)] * min(stepper.config.train.accumulate, 2))
