"""A whole training: processes started, everything checked and written down, the loop run, the result reported."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import torch
import torch.utils.deterministic

from dgmn2cli.distributed.group import Group, join, launched_world, require_devices
from dgmn2cli.distributed.launch import launch
from dgmn2cli.distributed.signals import StopRequest
from dgmn2cli.errors import DistributedError
from dgmn2cli.evaluate import EvalReport
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import describe_device, set_threads
from dgmn2cli.training.batch_size import with_batch_size
from dgmn2cli.training.initial_source import find_initial_weights
from dgmn2cli.training.initial_weights import load_initial_weights
from dgmn2cli.training.logs import RunLogs
from dgmn2cli.training.loop import Loop
from dgmn2cli.training.prepare import Training, build_network, open_run
from dgmn2cli.training.report import TrainReport
from dgmn2cli.training.request import TrainRequest, effective_batch, outline
from dgmn2cli.training.step import Stepper
from dgmn2cli.training.validate import Stopped, Watch, require_going


def train(request: TrainRequest, observer: Observer) -> TrainReport:
    """Trains, on one process, on several started here, or as one of those torchrun started.

    After SIGINT or SIGTERM the state is saved at the next step boundary, and the signal acts then as it would have
    without the training. The observer gets a `StepResult` after each step and an `Evaluated` after each evaluation.

    Raises:
        ConfigError, DataError, ResourceError, IntegrityError: what is wrong before the first step.
        NonFiniteError: the loss is NaN or infinite.
        ResourceError: the disk is full, the memory too small, a data worker died; the last checkpoint is good.
        DistributedError: a process died.
    """
    require_devices(request.device, request.processes)
    number = 0
    report: TrainReport | None
    if launched_world() == 1 and request.processes > 1:
        try:
            report, number = launch(_rank, (request,), request.processes, observer)
        except DistributedError:  # the one that died may have been writing a checkpoint
            request.folder.clear_abandoned()
            raise
    else:
        # A signal acts at once while processes wait for each other. Afterwards it is noted; torchrun hands on the
        # Ctrl-C that the terminal has sent to every process already.
        with join(request.device, observer) as group, StopRequest(insistent=launched_world() == 1) as stop:
            report = _train_here(request, observer, stop, group)
        number = stop.number or 0
    if report is None:
        signal.raise_signal(number or signal.SIGINT)  # now that all is saved, it acts as the caller has arranged
        raise KeyboardInterrupt
    return report


def _rank(request: TrainRequest, observer: Observer) -> TrainReport | None:
    """One process of several started here, on its share of the cores."""
    cores = len(os.sched_getaffinity(0))
    set_threads(request.threads or max(1, cores // request.processes))
    with StopRequest(insistent=False) as stop, join(request.device, observer) as group:
        return _train_here(request, observer, stop, group)


def _train_here(request: TrainRequest, observer: Observer, stop: StopRequest, group: Group) -> TrainReport | None:
    """The training on this process; None where it was stopped, its state saved."""
    began = time.monotonic()
    set_threads(request.threads)
    with ExitStack() as stack:
        observer = observer if group.main else Silent()
        stack.callback(observer.end)
        stack.enter_context(determinism(group.device, request.config.train.deterministic))
        watch = Watch(observer, partial(require_going, stop))
        try:
            training = group.once(partial(open_run, request, group, watch, stack))
        except Stopped:
            return None
        set_threads(int(training.environment["threads"]))
        training = with_batch_size(training, group, observer)
        notes = list(training.notes)
        _tell(request, training, group, observer)
        model = build_network(training.config, str(training.environment["backend"]))
        if training.state is None:
            notes += group.once(partial(first_weights, request, training, model, observer))
        stepper = Stepper(training.config, model.to(group.device), group)
        extra = {"resumed_at": training.state.iteration if training.state else 0, "notes": training.notes}
        folder = request.folder
        group.once(partial(folder.write_start, training.config, group.device, training.environment, extra))
        logs = None
        if group.main:
            logs = stack.enter_context(closing(RunLogs(folder.path, training.config, training.state, observer)))
        loop = Loop(training, group, stepper, observer, stop, folder, logs)
        if training.state is not None:
            loop.restore(training.state, training.source, own=training.own)
        try:
            loop.run()
            if loop.iteration < loop.config.train.iters:
                notes.append(f"Stopped early: no better mIoU in {loop.config.train.patience} evaluations.")
                observer.note(notes[-1])
            final = loop.finish()
        except Stopped:
            group.wait()
            observer.note(f"Stopped after {loop.iteration} steps; `--resume` goes on from there.")
            return None
        group.wait()
        return _report(request, loop, final, notes, time.monotonic() - began)


def _report(request: TrainRequest, loop: Loop, final: EvalReport, notes: list[str], seconds: float) -> TrainReport:
    config, store, state = loop.config, loop.store, loop.training.state
    assert loop.best is not None
    return TrainReport(
        model=request.model or config.name,
        out=request.out,
        iterations=loop.iteration,
        device=describe_device(loop.group.device),
        backend=str(loop.training.environment["backend"]),
        processes=loop.group.world,
        effective_batch=effective_batch(config, loop.group.world),
        lr=config.optim.lr,
        resumed_at=state.iteration if state else 0,
        loss=loop.last_step.loss if loop.last_step else None,
        pixel_accuracy=final.scores.pixel_accuracy,
        mean_iou=final.scores.mean_iou,
        mean_accuracy=final.scores.mean_accuracy,
        best=loop.best,
        checkpoint=store.last,
        best_checkpoint=store.best,
        evaluation=loop.folder.evaluation,
        seconds=seconds,
        notes=tuple(notes),
    )


def _tell(request: TrainRequest, training: Training, group: Group, observer: Observer) -> None:
    """Tells what is about to happen."""
    where = f"On {describe_device(group.device)}, op backend {training.environment['backend']}"
    for note in (
        *training.notes,
        outline(training.config, group.world, len(training.train)),
        f"{where}; everything goes to {request.out}.",
    ):
        observer.note(note)


def first_weights(request: TrainRequest, training: Training, model: Segmentor, observer: Observer) -> list[str]:
    """Loads the weights that the training starts from; says what was done with them."""
    config = training.config
    weights = find_initial_weights(config.train.init, config.model.backbone, request.zoo_file, request.cache)
    notes = load_initial_weights(model, weights, training.train)
    for note in notes:
        observer.note(note)
    return notes


@contextmanager
def determinism(device: torch.device, demanded: bool) -> Iterator[None]:
    """Within the block results do not depend on the run: always on CPUs, where it costs little; on GPUs if demanded.

    Args:
        demanded: operations that cannot be deterministic are refused.
    """
    if device.type != "cpu" and not demanded:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a module property
    torch.use_deterministic_algorithms(True, warn_only=not demanded)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
