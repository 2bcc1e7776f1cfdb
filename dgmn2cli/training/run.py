"""Owns a whole training: processes started, everything checked and written down, the loop run, the result reported."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.utils.deterministic

from dgmn2cli.distributed.group import Group as Team
from dgmn2cli.distributed.group import join as join_team
from dgmn2cli.distributed.group import launched_world, require_devices
from dgmn2cli.distributed.launch import Interrupted, launch
from dgmn2cli.distributed.signals import StopRequest
from dgmn2cli.errors import ConfigError
from dgmn2cli.evaluate import EvalReport
from dgmn2cli.files import local_write_errors
from dgmn2cli.inference.build import build_segmentor
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.observer import Observer
from dgmn2cli.ops import resolve as resolve_backend
from dgmn2cli.runtime import describe_device, resolve_dtype, set_threads
from dgmn2cli.training.board import MISSING, Board
from dgmn2cli.training.folder import FolderLock
from dgmn2cli.training.loop import Loop, Records
from dgmn2cli.training.report import Reporter, Silent, TrainReport
from dgmn2cli.training.request import RESUME_NEWEST, Prepared, TrainRequest, effective_batch, outline, prepare
from dgmn2cli.training.runlog import RunLog
from dgmn2cli.training.start import find_first_weights, load_first_weights
from dgmn2cli.training.state import TrainState, load_state, require_no_run, require_same_run
from dgmn2cli.training.step import Stepper
from dgmn2cli.training.validate import Stopped


@dataclass(frozen=True)
class Outcome:
    """How a training ended on one process: with a report, or stopped by a signal after saving."""

    report: TrainReport | None
    stopped: int = 0


@dataclass(frozen=True, eq=False)
class Opening:
    """What the first process finds out for all.

    Attributes:
        prepared: the training to run.
        state: where it stands; None for a new one.
        source: the checkpoint of that state.
        log_bytes: length of the log that belongs to it.
        notes: what the user should know about it.
    """

    prepared: Prepared
    state: TrainState | None
    source: Path
    log_bytes: int
    notes: tuple[str, ...]


def train(request: TrainRequest, reporter: Reporter) -> TrainReport:
    """Trains, on one process, on several started here, or as one of those torchrun started.

    After SIGINT or SIGTERM the state is saved at the next step boundary, and the signal acts then as it would have
    without the training.

    Raises:
        ConfigError, DataError, ResourceError, IntegrityError: what is wrong before the first step.
        NonFiniteError: the loss is NaN or infinite.
        ResourceError: the disk is full, the memory too small; the previous checkpoint is good.
        DistributedError: a process died.
    """
    require_devices(request.device, request.processes if launched_world() == 1 else 1)
    if launched_world() == 1 and request.processes > 1:
        try:
            outcome, number = launch(_rank, (request, reporter), request.processes)
            outcome = replace(outcome, stopped=number)  # the processes themselves know of SIGINT only
        except Interrupted as interrupted:
            outcome = Outcome(None, interrupted.number)
    else:
        # torchrun hands on the Ctrl-C that the terminal has sent to every process already
        with StopRequest(insistent=launched_world() == 1) as stop:
            outcome = _train_here(request, reporter, stop)
    if outcome.report is None:
        signal.raise_signal(outcome.stopped)  # now that all is saved, it acts as the caller has arranged
        raise KeyboardInterrupt
    return outcome.report


def speaks() -> bool:
    """Whether this process is the one that shows the result; of those torchrun started, the first."""
    return launched_world() == 1 or os.environ["RANK"] == "0"


def _rank(request: TrainRequest, reporter: Reporter, observer: Observer) -> Outcome:
    """One process of several started here: SIGINT and SIGTERM ask for a stop."""
    cores = len(os.sched_getaffinity(0))
    set_threads(request.threads or max(1, cores // request.processes))
    with StopRequest(insistent=False) as stop:
        return _train_here(request, reporter, stop)


def _train_here(request: TrainRequest, reporter: Reporter, stop: StopRequest) -> Outcome:
    began = time.monotonic()
    set_threads(request.threads)
    with ExitStack() as stack:
        team = stack.enter_context(join_team(request.device))
        speaker = reporter if team.main else Silent()
        stack.callback(speaker.done)
        stack.enter_context(determinism(team.device, request.config.train.deterministic))
        opening = team.once(partial(_open_locked, request, team.world, speaker, stack))
        backend = resolve_backend(request.backend, team.device, resolve_dtype(opening.prepared.config.train.dtype))
        notes = [*opening.notes, *_say(speaker, opening, team)]
        speaker.note(f"On {describe_device(team.device)}, op backend {backend}; everything goes to {request.out}.")
        model = build_network(opening.prepared, backend)
        if opening.state is None:
            notes += team.once(partial(_first_weights, request, opening.prepared, model, speaker))
        stepper = Stepper(opening.prepared.config, model.to(team.device), team)
        team.once(partial(_write_start, request, opening, team, backend))
        records = _records(request, opening, stack, speaker) if team.main else None
        loop = Loop(opening.prepared, team, stepper, backend, speaker, stop, records)
        return _course(request, loop, opening, notes, began)


def _course(request: TrainRequest, loop: Loop, opening: Opening, notes: list[str], began: float) -> Outcome:
    """Runs the loop from where the training stands."""
    if opening.state is not None:
        loop.restore(opening.state, opening.source)
    try:
        final = loop.finish() if loop.run() else None
    except Stopped:
        final = None
    loop.team.wait()
    if final is None:
        loop.reporter.note(f"Stopped after {loop.iteration} steps; `--resume` goes on from there.")
        return Outcome(None, loop.stop.number or signal.SIGINT)
    return Outcome(_report(request, loop, opening, final, notes, time.monotonic() - began))


def _report(
    request: TrainRequest, loop: Loop, opening: Opening, final: EvalReport, notes: list[str], seconds: float
) -> TrainReport:
    config, folder = loop.config, request.folder
    shelf = folder.shelf(config.train.keep)
    assert loop.best is not None
    return TrainReport(
        model=request.model or config.name,
        out=request.out,
        iterations=loop.iteration,
        device=describe_device(loop.team.device),
        backend=loop.backend,
        processes=loop.team.world,
        effective_batch=effective_batch(config, loop.team.world),
        lr=config.optim.lr,
        resumed_at=opening.state.iteration if opening.state else 0,
        loss=loop.last_step.loss if loop.last_step else None,
        pixel_accuracy=final.scores.pixel_accuracy,
        mean_iou=final.scores.mean_iou,
        mean_accuracy=final.scores.mean_accuracy,
        best=loop.best,
        checkpoint=shelf.last,
        best_checkpoint=shelf.best,
        evaluation=folder.evaluation,
        seconds=seconds,
        notes=tuple(notes),
    )


def _open_locked(request: TrainRequest, world: int, reporter: Reporter, stack: ExitStack) -> Opening:
    """`_open` with the right to write to the run folder, which is created only for a training that can begin."""
    if request.out.exists():
        stack.enter_context(FolderLock(request.out))
        return _open(request, world, reporter)
    opening = _open(request, world, reporter)
    stack.enter_context(FolderLock(request.out))
    require_no_run(request.folder.shelf(0))  # another one may have begun meanwhile
    return opening


def _open(request: TrainRequest, world: int, reporter: Reporter) -> Opening:
    """Checks data and configuration, and finds where the run stands; nothing is written yet."""
    shelf, notes = request.folder.shelf(request.config.train.keep), []
    state, source = None, shelf.last
    if not request.resume:
        require_no_run(shelf)
    elif request.resume == RESUME_NEWEST:
        shelf.clear()
        state = shelf.newest(reporter.note)
        if state is None:
            notes.append("There is no checkpoint yet: the run starts from the beginning.")
    else:
        source = Path(request.resume)
        state = load_state(source)[0]
    prepared = prepare(request, reporter, need_first_weights=state is None)
    if request.resume:
        differences = request.folder.differences(prepared.config)
        if state is not None and state.exact and state.world != world:
            differences.append(f"processes: {state.world} -> {world}")
        require_same_run(differences, request.force, request.out)
        notes += [f"Changed: {line}" for line in differences]
    if state is not None:
        if state.iteration > prepared.config.train.iters:
            why = f"{state.iteration} steps are done, train.iters is {prepared.config.train.iters}"
            raise ConfigError("nothing is left to train", where=request.out, why=why, hint="Set more --max-iters.")
        if request.resume == RESUME_NEWEST:
            every = prepared.config.train.save_every
            shelf.name_newest(state, number=bool(every) and state.iteration % every == 0)
        notes.append(f"Resumed after {state.iteration} steps.")
        if not state.exact:
            notes.append("The checkpoint is another program's: weights and optimiser go on, random numbers start here.")
    ours = state is not None and os.path.dirname(os.path.realpath(source)) == os.path.realpath(shelf.folder)
    return Opening(prepared, state, source, state.log_bytes if state and ours else 0, tuple(notes))


def _say(reporter: Reporter, opening: Opening, team: Team) -> list[str]:
    """Tells what is about to happen."""
    prepared = opening.prepared
    for note in opening.notes:
        reporter.note(note)
    for note in prepared.notes:
        reporter.note(note)
    reporter.note(outline(prepared.config, team.world, len(prepared.train)))
    return list(prepared.notes)


def build_network(prepared: Prepared, backend: str) -> Segmentor:
    """The configuration's network with fresh weights that depend on nothing but the seed."""
    torch.manual_seed(prepared.config.train.seed)
    model = build_segmentor(prepared.config.model)
    use_backend(model, backend)
    return model


def _first_weights(request: TrainRequest, prepared: Prepared, model: Segmentor, reporter: Reporter) -> list[str]:
    config = prepared.config
    first = find_first_weights(config.train.init, config.model.backbone, request.zoo_file, request.cache)
    notes = load_first_weights(model, first, prepared.train)
    for note in notes:
        reporter.note(note)
    return notes


def _write_start(request: TrainRequest, opening: Opening, team: Team, backend: str) -> None:
    """Writes down configuration and environment, before anything runs; and sees that checkpoints have their place."""
    shelf = request.folder.shelf(0)
    with local_write_errors(shelf.folder):
        shelf.folder.mkdir(parents=True, exist_ok=True)
    extra = {"resumed_at": opening.state.iteration if opening.state else 0, "notes": opening.notes}
    request.folder.write_start(opening.prepared.config, team, backend, extra)


def _records(request: TrainRequest, opening: Opening, stack: ExitStack, reporter: Reporter) -> Records:
    """Opens the log at the state's place, and TensorBoard's."""
    log = stack.enter_context(closing(RunLog(request.folder.log, opening.log_bytes)))
    if log.lost:
        reporter.note(f"The log is {log.lost} bytes shorter than the checkpoint says; it goes on where it ends.")
    events = stack.enter_context(closing(RunLog(request.folder.events)))
    events.write({"time": time.time(), "event": "started", "iter": opening.state.iteration if opening.state else 0})
    board = stack.enter_context(Board(request.folder.tensorboard, opening.state.iteration if opening.state else 0))
    if board.missing:
        reporter.note(MISSING)
    return Records(request.folder, log, events, board)


@contextmanager
def determinism(device: torch.device, demanded: bool) -> Iterator[None]:
    """Within the block results do not depend on the run: always on CPUs, where it costs little; on GPUs if demanded.

    Args:
        device: where the training runs.
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
