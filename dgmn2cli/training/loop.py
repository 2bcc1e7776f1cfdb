"""Owns the course of a training: steps, evaluations, saves, and the end, whichever comes first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmn2cli.checkpoint.weights import Checkpoint, load_weights
from dgmn2cli.config import config_to_toml
from dgmn2cli.data.loaders import TrainStream, train_batches
from dgmn2cli.distributed.group import Group as Team
from dgmn2cli.distributed.signals import StopRequest
from dgmn2cli.evaluate import EvalReport
from dgmn2cli.files import atomic_write, hash_file, to_json
from dgmn2cli.training.board import Board
from dgmn2cli.training.folder import RunFolder
from dgmn2cli.training.optim import MovingAverage
from dgmn2cli.training.report import Best, Reporter, StepReport
from dgmn2cli.training.request import Prepared, augmentation, effective_batch
from dgmn2cli.training.runlog import RunLog
from dgmn2cli.training.state import Shelf, TrainState, restore_optimizer
from dgmn2cli.training.step import Stepper
from dgmn2cli.training.validate import Stopped, snapshot, validate, write_samples
from dgmn2cli.version import __version__


@dataclass(frozen=True)
class Records:
    """What the first process writes to.

    Attributes:
        folder: the run's.
        log: the record of steps and evaluations.
        events: what depends on the clock.
        board: TensorBoard.
    """

    folder: RunFolder
    log: RunLog
    events: RunLog
    board: Board


class Loop:
    """A training on one process of a team.

    Args:
        prepared: configuration and data.
        team: the processes.
        stepper: network and optimiser.
        backend: the op backend's name.
        reporter: whoever watches.
        stop: whether the run is to end.
        records: on the first process; None on the others.

    Attributes:
        iteration: optimiser steps done.
        best: the best evaluation so far.
        last_step: the newest step of this process's life.
        evaluation: of the weights after `iteration` steps, if it was made in this process's life.
    """

    def __init__(
        self,
        prepared: Prepared,
        team: Team,
        stepper: Stepper,
        backend: str,
        reporter: Reporter,
        stop: StopRequest,
        records: Records | None,
    ) -> None:
        self.prepared, self.config, self.team = prepared, prepared.config, team
        self.stepper, self.backend, self.reporter, self.stop, self.records = stepper, backend, reporter, stop, records
        settings = self.config.train
        self.average = MovingAverage(stepper.model, settings.ema_decay) if settings.ema else None
        self.iteration, self.validated = 0, True
        self.best: Best | None = None
        self.last_step: StepReport | None = None
        self.evaluation: EvalReport | None = None

    def restore(self, state: TrainState, path: Path) -> None:
        """Takes over a saved state.

        Raises:
            IntegrityError: the state in the file `path` is another network's.
        """
        load_weights(self.stepper.model, Checkpoint(path, sha256="", size=0, state=dict(state.weights)))
        restore_optimizer(self.stepper.optimizer, state.optimizer, path)
        if self.average is not None:
            self.average.load(dict(state.usable))
        if state.scaler:
            self.stepper.scaler.load_state_dict(state.scaler)
        self.iteration, self.best, self.validated = state.iteration, state.best, state.validated

    def run(self) -> bool:
        """Trains to the end (True), or to the next step boundary after a stop was asked for (False); saved either way.

        Raises:
            NonFiniteError, DataError, ResourceError, DistributedError: what ends a training early.
        """
        if not self.validated:
            if not self._validate():
                return False
            self._save()
        settings, team = self.config.train, self.team
        start = self.iteration * settings.accumulate
        stream = TrainStream(len(self.prepared.train), settings.seed, settings.batch_size, team.rank, team.world, start)
        batches = train_batches(
            self.prepared.train,
            augmentation(self.config),
            stream,
            workers=self.config.data.workers,
            pin_memory=team.device.type == "cuda",
        )
        while self.iteration < settings.iters:
            step = self.stepper.step(self.iteration, batches)
            self._took(step)
            stopping = self._stopping()
            if not stopping and not self.validated:
                stopping = not self._validate()
            if stopping or self._saves_now():
                self._save()
            if stopping:
                return False
        return True

    def _took(self, step: StepReport) -> None:
        """Notes a step."""
        settings = self.config.train
        self.iteration, self.last_step, self.evaluation = step.iteration, step, None
        if self.average is not None:
            self.average.update(self.stepper.model)
        every = settings.val_every
        self.validated = not (step.iteration == settings.iters or (every and step.iteration % every == 0))
        if self.records is not None:
            record = {"iter": step.iteration, "loss": step.loss, "acc": step.accuracy, "lr": step.lr}
            self.records.log.write(record)
            self.records.board.step(step)
        self.reporter.step(step, settings.iters)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop; the same answer on all."""
        return self.team.mean([float(self.stop.number is not None)])[0] > 0

    def _numbers_now(self) -> bool:
        every = self.config.train.save_every
        return bool(every) and self.iteration % every == 0

    def _saves_now(self) -> bool:
        """Whether a save is due: at its own interval, and after each evaluation."""
        return self._numbers_now() or self.evaluation is not None

    def _usable(self) -> Mapping[str, Tensor]:
        return self.stepper.model.state_dict() if self.average is None else self.average.state

    def evaluate(self) -> EvalReport:
        """Evaluates the weights as they are now, on all processes.

        Raises:
            Stopped: it was given up because the run is to end.
            Dgmn2Error: as `evaluate`.
        """
        data = self.prepared.val
        name = f"after {self.iteration} steps"
        weights = self._usable()
        if not self.config.train.sync_bn:  # each process has running statistics of its own; the first one's are saved
            weights = self.team.once(lambda: _on_cpu(dict(self._usable())))
        segmenter = snapshot(self.config, weights, data, self.team, self.backend, name)
        share = -(-len(data) // self.team.world)
        advance = self.reporter.counting(f"evaluating {name}", share)
        self.evaluation = validate(
            segmenter,
            data,
            self.team,
            workers=self.config.data.workers,
            advance=advance,
            stopping=lambda: self.stop.number is not None,
        )
        if self.records is not None:
            write_samples(self.records.folder.sample(self.iteration), segmenter, data)
        return self.evaluation

    def _validate(self) -> bool:
        """Evaluates and notes the figures; False where that was given up."""
        try:
            scores = self.evaluate().scores
        except Stopped:
            return False
        miou = scores.mean_iou if scores.mean_iou == scores.mean_iou else 0.0  # NaN: no class was there
        better = self.best is None or miou > self.best.miou
        if better:
            self.best = Best(miou, self.iteration)
        self.validated = True
        if self.records is not None:
            figures = {"miou": scores.mean_iou, "aacc": scores.pixel_accuracy, "macc": scores.mean_accuracy}
            self.records.log.write({"iter": self.iteration, **figures, "best": better})
            classes = {f"IoU {entry.name}": entry.iou for entry in scores.classes}
            self.records.board.evaluation(self.iteration, {**figures, **classes})
            self.records.folder.draw_curves(self.config.name)
        self.reporter.evaluated(self.iteration, miou, scores.pixel_accuracy, better)
        return True

    def _save(self) -> None:
        """Saves the state; the other processes wait until it is on the disk."""
        self.team.once(self._put)

    def _put(self) -> None:
        assert self.records is not None
        state = self.state(self.records.log.durable_length())
        self.shelf.put(state, self.meta(), number=self._numbers_now())
        self.records.events.write({"time": time.time(), "event": "saved", "iter": self.iteration})

    @property
    def shelf(self) -> Shelf:
        """The run's checkpoints."""
        assert self.records is not None
        return self.records.folder.shelf(self.config.train.keep)

    def state(self, log_bytes: int) -> TrainState:
        """Where the training stands, tensors on the CPU."""
        stepper = self.stepper
        return TrainState(
            iteration=self.iteration,
            weights=_on_cpu(dict(stepper.model.state_dict())),
            optimizer=_on_cpu(stepper.optimizer.state_dict()),
            average=_on_cpu(self.average.state) if self.average is not None else None,
            scaler=stepper.scaler.state_dict(),
            best=self.best,
            validated=self.validated,
            log_bytes=log_bytes,
            world=self.team.world,
            seed=self.config.train.seed,
        )

    def meta(self) -> dict[str, Any]:
        """What a checkpoint says about itself; the names are the published ones where those exist."""
        data = self.prepared.train
        return {
            "epoch": self.iteration * effective_batch(self.config, self.team.world) // len(data),
            "CLASSES": list(data.classes),
            "PALETTE": data.palette.tolist(),
            "config": config_to_toml(self.config),
            "dgmn2cli": __version__,
        }

    def finish(self) -> EvalReport:
        """The final evaluation, written to the run folder; made now where an earlier life of the run made it.

        Raises:
            Stopped: it was given up because the run is to end.
        """
        report = self.evaluation or self.evaluate()
        return self.team.once(partial(self._write_final, report))

    def _write_final(self, report: EvalReport) -> EvalReport:
        assert self.records is not None
        last = self.shelf.last
        report = replace(report, run=replace(report.run, checkpoint=str(last), sha256=hash_file(last)))
        self.records.events.write({"time": time.time(), "event": "finished", "iter": self.iteration})
        atomic_write(self.records.folder.evaluation, to_json(report) + "\n")
        self.records.folder.draw_curves(self.config.name)
        return report


def _on_cpu(value: Any) -> Any:
    """Nested dicts and lists with every tensor on the CPU, laid out in the order of its axes as published files are."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
