"""The dry run: what a training would do, how long it would take and how much memory, from a few measured steps."""

from __future__ import annotations

import os
import resource
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from dgmn2cli.data.loaders import TrainStream, train_batches
from dgmn2cli.data.transforms import Augmentation
from dgmn2cli.distributed.group import Group, join, launched_world, require_devices
from dgmn2cli.files import check_folder
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import describe_device, set_threads
from dgmn2cli.training.batch_size import with_batch_size
from dgmn2cli.training.forecast import evaluation_in_steps, evaluations_left
from dgmn2cli.training.optim import poly_lr
from dgmn2cli.training.prepare import Training, build_network, prepare
from dgmn2cli.training.request import TrainRequest, effective_batch, outline
from dgmn2cli.training.run import determinism, first_weights
from dgmn2cli.training.state import require_no_run
from dgmn2cli.training.step import Stepper

TIMED, ENOUGH = 3, 3.0  # steps and seconds that are measured at least, after one step that warms up


@dataclass(frozen=True)
class TrainPlan:
    """What a training would be."""

    model: str  # zoo key or configuration name
    out: Path  # the run folder; neither created nor changed
    device: str  # where, in words
    init: str  # where the first weights come from
    # processes, batch_size, accumulate, effective_batch, crop: of each optimiser step
    processes: int
    batch_size: int
    accumulate: int
    effective_batch: int
    crop: int
    iterations: int  # optimiser steps
    passes: float  # over the training images
    # lr, last_lr: the one that the fall begins at, and that of the last step
    lr: float
    last_lr: float
    # train_images, val_images, classes: the data
    train_images: int
    val_images: int
    classes: int
    # parameters, trained: all, and those that learn
    parameters: int
    trained: int
    evaluations: int  # during the training
    checkpoints: int  # numbered ones that stay
    seconds_per_step: float  # the median on one process; the exchange between processes comes on top
    training_seconds: float  # all steps, evaluations excluded
    evaluation_seconds: float  # all evaluations, estimated from the steps by the pixels that they see
    memory_bytes: int  # highest use of one process during a step, of the GPU or of main memory
    outline: str  # batch, learning rate and length in one line
    notes: tuple[str, ...]  # what the user should know


def plan_training(request: TrainRequest, observer: Observer) -> TrainPlan:
    """Checks everything for a new run, takes a few steps on one process, and writes nothing.

    Raises:
        Dgmn2Error: what would end the training before its first step, or in it.
    """
    started = launched_world() > 1  # by torchrun: all of them measure
    require_devices(request.device, request.processes)
    threads = set_threads(request.threads)
    if request.threads is None and not started:
        set_threads(max(1, threads // request.processes))
    with join(request.device, observer) as group, determinism(group.device, request.config.train.deterministic):
        check_folder(request.out)
        if os.path.isdir(request.out):
            request.folder.require_ours()
        require_no_run(request.folder.checkpoints())
        training = with_batch_size(prepare(request, group, observer), group, observer)
        config, train = training.config, training.config.train
        model = build_network(config, str(training.environment["backend"]))
        notes = first_weights(request, training, model, Silent())
        stepper = Stepper(config, model.to(group.device), group)
        seconds = _seconds_per_step(training, stepper, group, observer)
        parameters = list(stepper.model.parameters())
        processes = group.world if started else request.processes
        batch, images = effective_batch(config, processes), len(training.train)
        saves = train.iters // train.save_every if train.save_every else 0
        return TrainPlan(
            model=request.model or config.name,
            out=request.out,
            device=describe_device(group.device),
            init=train.init,
            processes=processes,
            batch_size=train.batch_size,
            accumulate=train.accumulate,
            effective_batch=batch,
            crop=config.augment.crop,
            iterations=train.iters,
            passes=train.iters * batch / images,
            lr=config.optim.lr,
            last_lr=poly_lr(config.optim, train.iters - 1, train.iters),
            train_images=images,
            val_images=len(training.val),
            classes=len(training.train.classes),
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            evaluations=evaluations_left(config, 0),
            checkpoints=min(saves, train.keep) if train.keep else saves,
            seconds_per_step=seconds,
            training_seconds=seconds * train.iters,
            evaluation_seconds=seconds
            * evaluations_left(config, 0)
            * evaluation_in_steps(config, training.val, processes),
            memory_bytes=_peak_memory(group),
            outline=outline(config, processes, images),
            notes=(*training.notes, *notes),
        )


def _seconds_per_step(training: Training, stepper: Stepper, group: Group, observer: Observer) -> float:
    """The median: on a busy machine a few steps take many times as long as the others."""
    config, train = training.config, training.config.train
    stream = TrainStream(len(training.train), train.seed, train.batch_size)
    reading = train_batches(training.train, Augmentation(config.augment), stream, workers=config.data.workers)
    observer.begin("measuring steps")
    times: list[float] = []
    with closing(reading) as batches:
        while len(times) <= TIMED or sum(times[1:]) < ENOUGH:
            began = _now(group)
            stepper.step(len(times) % train.iters, [next(batches) for _ in range(train.accumulate)])
            times += group.mean([_now(group) - began])  # the same on all processes: they take the same steps
            observer.advance()
    return statistics.median(times[1:])


def _now(group: Group) -> float:
    if group.device.type == "cuda":
        torch.cuda.synchronize(group.device)
    return time.perf_counter()


def _peak_memory(group: Group) -> int:
    """Bytes: what PyTorch reserved on the GPU at most, or the process's largest resident set."""
    if group.device.type == "cuda":
        return torch.cuda.max_memory_reserved(group.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
