"""The course of a training: steps, saves, evaluations, and the end, whichever comes first."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmn2cli.checkpoint.unwrap import Checkpoint
from dgmn2cli.checkpoint.weights import load_weights
from dgmn2cli.config import config_to_toml
from dgmn2cli.data.loaders import TrainBatch, TrainStream, train_batches
from dgmn2cli.data.transforms import Augmentation
from dgmn2cli.distributed.group import Group
from dgmn2cli.distributed.signals import StopRequest
from dgmn2cli.errors import Dgmn2Error
from dgmn2cli.evaluate import EvalReport, evaluate
from dgmn2cli.evaluate.page import write_report_page
from dgmn2cli.files import atomic_write, hash_file, to_json
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.observer import Observer
from dgmn2cli.report.charts import training_curves
from dgmn2cli.training.folder import RunFolder
from dgmn2cli.training.forecast import Forecast, evaluation_in_steps
from dgmn2cli.training.logs import RunLogs, read_log
from dgmn2cli.training.optim import MovingAverage
from dgmn2cli.training.prepare import Training
from dgmn2cli.training.report import Best, Evaluated, StepResult
from dgmn2cli.training.request import effective_batch
from dgmn2cli.training.state import CheckpointStore, TrainState, restore_optimizer
from dgmn2cli.training.step import Stepper
from dgmn2cli.training.validate import Stopped, Watch, require_going, snapshot, write_samples
from dgmn2cli.version import __version__
from dgmn2cli.zoo import short_name


class Loop:
    """A training on one process of a group.

    Args:
        stop: whether the run is to end.
        logs: its records, on the first process; None on the others.

    Attributes:
        iteration: optimiser steps done.
        best: the best evaluation so far.
        last_step: the newest step of this process's life.
        evaluation: of the weights after `iteration` steps, if it was made in this process's life.
    """

    def __init__(
        self,
        training: Training,
        group: Group,
        stepper: Stepper,
        observer: Observer,
        stop: StopRequest,
        folder: RunFolder,
        logs: RunLogs | None,
    ) -> None:
        self.training, self.config, self.group, self.stepper = training, training.config, group, stepper
        self.observer, self.stop, self.folder, self.logs = observer, stop, folder, logs
        settings = self.config.train
        self.average = MovingAverage(stepper.model, settings.ema_decay) if settings.ema else None
        self.iteration, self.validated = 0, True  # the evaluation due after this step, if any, is done
        self.best: Best | None = None
        self.last_step: StepResult | None = None
        self.evaluation: EvalReport | None = None
        self._saved: tuple[int, bool] | None = (0, True)
        self.forecast = Forecast(self.config, evaluation_in_steps(self.config, training.val, group.world))

    def restore(self, state: TrainState, path: Path, *, own: bool) -> None:
        """Takes over a saved state; one of another run is saved in this folder, too, when the training begins.

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
        self._saved = (state.iteration, state.validated) if own else None

    def run(self) -> None:
        """Trains to the end; whatever ends it between two steps, the state is saved first.

        Raises:
            Stopped: a stop was asked for.
            NonFiniteError, DataError, ResourceError, DistributedError: what ends a training early.
        """
        with closing(self._batches()) as batches:
            self._begin()
            while True:
                ready = self._fetch(batches)
                self._between_steps(ready)
                if not isinstance(ready, list) or self.ended:
                    return
                self._took(self.stepper.step(self.iteration, ready))

    def _begin(self) -> None:
        self.observer.begin("training", self.config.train.iters, done=self.iteration, unit="steps")
        self.forecast.begin()

    def _batches(self) -> Generator[TrainBatch, None, None]:
        settings, group = self.config.train, self.group
        start = self.iteration * settings.accumulate
        stream = TrainStream(
            len(self.training.train), settings.seed, settings.batch_size, group.rank, group.world, start
        )
        return train_batches(
            self.training.train,
            Augmentation(self.config.augment),
            stream,
            workers=self.config.data.workers,
            pin_memory=group.device.type == "cuda",
            check=self._check_stop,
        )

    @property
    def gave_up(self) -> bool:
        """Whether the evaluations that `train.patience` waits for are over, none better than the best.

        Before an evaluation: whether it is the last one unless it is better.
        """
        settings = self.config.train
        waited = self.iteration - self.best.iteration if self.best else 0
        return bool(settings.patience) and waited >= settings.patience * settings.val_every

    @property
    def ended(self) -> bool:
        """Whether no step is left."""
        return self.iteration == self.config.train.iters or (self.validated and self.gave_up)

    def _check_stop(self) -> None:
        require_going(self.stop)

    def _fetch(self, batches: Generator[TrainBatch, None, None]) -> list[TrainBatch] | Dgmn2Error | None:
        """The next step's batches, all before any of them changes the network; None at the end of the training."""
        if self.ended:
            return None
        try:
            return [next(batches) for _ in range(self.config.train.accumulate)]
        except Dgmn2Error as error:
            return error

    def _between_steps(self, ready: list[TrainBatch] | Dgmn2Error | None) -> None:
        """Saves and evaluates what is due; ends the training if any process must, on all of them.

        Raises:
            Stopped: a stop was asked for.
            Dgmn2Error: the next batches cannot be read.
        """
        fault = ready if isinstance(ready, Dgmn2Error) and not isinstance(ready, Stopped) else None
        stopped, failed = self.group.mean([float(self.stop.number is not None), float(fault is not None)])
        if stopped or failed or self._numbers_now() or not self.validated or self._saved is None:
            self._save()  # before the evaluation, which may fail
        if failed:
            faults = self.group.gather(fault)
            first = next(rank for rank, found in enumerate(faults) if found is not None)
            error = faults[first]
            assert error is not None
            error.told = not self.group.main
            raise error
        if stopped:
            raise Stopped("the training was told to stop")
        if not self.validated:
            self._validate()
            self._save()
            if not self.ended:
                self._begin()

    def _took(self, step: StepResult) -> None:
        """Notes a step."""
        settings = self.config.train
        self.iteration, self.last_step, self.evaluation = step.iteration, step, None
        self.forecast.step()
        if self.average is not None:
            self.average.update(self.stepper.model)
        every = settings.val_every
        self.validated = not (step.iteration == settings.iters or (every and step.iteration % every == 0))
        if self.logs is not None:
            self.logs.step(step)
        facts = f"loss {step.loss:.4f}, accuracy {step.accuracy:.1f} %, lr {step.lr:.3g}"
        left = self.forecast.seconds_left(step.iteration, due=not self.validated)
        self.observer.advance(done=step.iteration, detail=facts, left=left)
        self.observer.result(step)

    def _numbers_now(self) -> bool:
        every = self.config.train.save_every
        return bool(every) and self.iteration % every == 0

    def _usable(self) -> Mapping[str, Tensor]:
        return self.stepper.model.state_dict() if self.average is None else self.average.state

    def evaluate(self) -> EvalReport:
        """Evaluates the weights as they are now, on all processes.

        Raises:
            Stopped: it was given up because the run is to end.
            Dgmn2Error: as `evaluate`.
        """
        data, name = self.training.val, f"after {self.iteration} steps"
        weights = self._usable()
        if not self.config.train.sync_bn:  # each process has running statistics of its own; the first one's are saved
            weights = self.group.once(lambda: _on_cpu(dict(self._usable())))
        backend = str(self.training.environment["backend"])
        segmenter = snapshot(self.config, weights, data, self.group, backend, name)
        self.evaluation = evaluate(
            segmenter,
            data,
            group=self.group,
            workers=max(1, self.config.data.workers),
            observer=Watch(self.observer, self._check_stop, f"evaluating {name}"),
            analysis=self.iteration >= self.config.train.iters or self.gave_up,
        )
        if self.group.main:
            self._show(partial(self._write_samples, segmenter))
        return self.evaluation

    def _validate(self) -> None:
        """Evaluates and notes the figures.

        Raises:
            Stopped: it was given up because the run is to end.
        """
        self.forecast.begin()
        report = self.evaluate()
        self.forecast.evaluated()
        scores = report.scores
        miou = scores.mean_iou if scores.mean_iou == scores.mean_iou else 0.0  # NaN: no class was there
        better = self.best is None or miou > self.best.miou
        if better:
            self.best = Best(miou, self.iteration)
        self.validated = True
        if self.logs is not None:
            self.logs.evaluation(self.iteration, report, better)
            self._show(self._draw_curves)
        self.observer.result(Evaluated(self.iteration, miou, scores.pixel_accuracy, better))

    def _show(self, work: Callable[[], object]) -> None:
        """Does what is only for looking at: it ends no training."""
        try:
            work()
        except (Dgmn2Error, OSError, MemoryError, RuntimeError, ValueError) as error:
            text = str(error) if isinstance(error, Dgmn2Error) else f"{type(error).__name__}: {str(error)[:300]}"
            self.observer.note(f"An image of the run's progress is missing: {text}")

    def _write_samples(self, segmenter: Segmenter) -> None:
        write_samples(self.folder.sample(self.iteration), segmenter, self.training.val, self._check_stop)

    def _draw_curves(self) -> None:
        records, damaged = read_log(self.folder.log)
        training_curves(records, self.folder.curves, short_name(self.config.name))
        if damaged:
            self.observer.note(f"{damaged} damaged lines of {self.folder.log} are left out of the curves.")

    def _save(self) -> None:
        """Saves the state unless it is saved already; the other processes wait until it is on the disk."""
        if self._saved != (self.iteration, self.validated):
            self.group.once(self._put)
            self._saved = (self.iteration, self.validated)

    def _put(self) -> None:
        assert self.logs is not None
        state = self.state(self.logs.log.durable_length())
        again = self._saved == (self.iteration, False)
        self.store.put(state, self.meta(), number=self._numbers_now(), again=again)
        self.logs.event("saved", self.iteration)

    @property
    def store(self) -> CheckpointStore:
        """The run's checkpoints."""
        return self.folder.checkpoints(self.config.train.keep)

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
            environment=self.training.environment,
            seed=self.config.train.seed,
        )

    def meta(self) -> dict[str, Any]:
        """What a checkpoint says about itself; the names are the published ones where those exist."""
        data = self.training.train
        return {
            "epoch": self.iteration * effective_batch(self.config, self.group.world) // len(data),
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
        drawn = self.evaluation is not None
        report = self.evaluation or self.evaluate()
        return self.group.once(partial(self._write_final, report, drawn))

    def _write_final(self, report: EvalReport, drawn: bool) -> EvalReport:
        assert self.logs is not None
        last = self.store.last
        report = replace(report, run=replace(report.run, checkpoint=str(last), sha256=hash_file(last))).signed()
        self.logs.event("finished", self.iteration)
        atomic_write(self.folder.evaluation, to_json(report) + "\n")
        self._show(partial(write_report_page, self.folder.page, report))
        if not drawn:
            self._show(self._draw_curves)
        return report


def _on_cpu(value: Any) -> Any:
    """Nested dicts and lists with every tensor on the CPU, laid out in the order of its axes as published files are."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
