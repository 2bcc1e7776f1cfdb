"""Owns how `dgmn2 train` reads its options and shows a run: progress, notes, plan and result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from dgmn2cli.cli import render
from dgmn2cli.cli.options import Session
from dgmn2cli.errors import ConfigError

if TYPE_CHECKING:
    from dgmn2cli.inference.load import Recipe
    from dgmn2cli.training.plan import TrainPlan
    from dgmn2cli.training.report import StepReport, TrainReport

RUNS = Path("runs")
QUIET_SECONDS = 30.0  # between two lines where there is no terminal for a bar
_TRAINING = "training"
# option -> settings of the configuration it stands for
SETTINGS = {
    "data_root": ("data.root",),
    "max_iters": ("train.iters",),
    "batch_size": ("train.batch_size",),
    "accumulate": ("train.accumulate",),
    "crop": ("augment.crop",),
    "scale": ("augment.scale", "inference.scale"),
    "window": ("inference.window",),
    "stride": ("inference.stride",),
    "init": ("train.init",),
    "dtype": ("train.dtype",),
    "seed": ("train.seed",),
    "deterministic": ("train.deterministic",),
    "val_every": ("train.val_every",),
    "save_every": ("train.save_every",),
    "keep": ("train.keep",),
    "ema": ("train.ema",),
    "freeze_backbone": ("train.freeze_backbone",),
    "workers": ("data.workers",),
    "class_weights": ("train.class_weights_from",),
}


def overrides(options: Mapping[str, Any]) -> list[str]:
    """The settings that options stand for, as `KEY=VALUE`; those of `--set` come last and win."""
    named = {name: options[name] for name in SETTINGS if options[name] is not None}
    if _from_environment("data_root"):
        del named["data_root"]  # see `recipe`
    made = [f"{key}={_value(value)}" for name, value in named.items() for key in SETTINGS[name]]
    if options["class_weights"] is not None:
        made.append("train.class_weights=[]")  # those a resumed run has counted or read before
    return [*made, *options["overrides"]]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def recipe(session: Session, model: str, options: Mapping[str, Any], settings: list[str]) -> tuple[Recipe, Path]:
    """The configuration to train and the run folder; `--resume` without a model takes the run's own configuration.

    The environment's data folder is for the published configurations; a file of the user's says itself where its is.

    Raises:
        ConfigError: no such model, or faults in the configuration.
    """
    from dgmn2cli.inference.load import resolve

    out: Path | None = options["out"]
    if options["resume"] and not _model_named():
        if out is None:
            raise ConfigError("--resume needs to know the run", hint="Name its folder with --out, or its model.")
        own = out / "config.toml"
        if own.is_file():
            return resolve(str(own.absolute()), settings), out
    found = resolve(model, settings, session.zoo())
    if found.entry is not None and _from_environment("data_root"):
        found = resolve(model, [f"data.root={options['data_root']}", *settings], session.zoo())
    return found, out or RUNS / (found.entry.key if found.entry else found.config.name)


def _model_named() -> bool:
    context = click.get_current_context()
    source = context.get_parameter_source("model")
    default = source in (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP, None)
    return bool(context.params.get("model_named")) or not default


def _from_environment(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.ENVIRONMENT


class Console:
    """A training's progress on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._bar: AbstractContextManager[Callable[..., None]] | None = None
        self._advance: Callable[..., None] = _nothing
        self._what = ""
        self._began, self._first, self._said = 0.0, 0, 0.0

    def note(self, message: str) -> None:
        """A line."""
        render.notice(self.session, message)

    def counting(self, what: str, total: int) -> Callable[[], object]:
        """A bar of its own."""
        self._open(what, total)
        return self._advance

    def step(self, step: StepReport, iterations: int) -> None:
        """The bar of the steps; without a terminal a line every half minute."""
        now = time.monotonic()
        if self._what != _TRAINING:
            self._open(_TRAINING, iterations)
            self._began, self._first = now, step.iteration
        facts = f"loss {step.loss:.4f}, accuracy {step.accuracy:.1f} %, lr {step.lr:.3g}"
        self._advance(completed=step.iteration, description=facts)
        if not render.err(self.session).is_terminal and now - self._said >= QUIET_SECONDS:
            self._said = now
            done = step.iteration - self._first
            left = f", {_duration((now - self._began) / done * (iterations - step.iteration))} left" if done else ""
            self.note(f"step {step.iteration} of {iterations}: {facts}{left}")

    def evaluated(self, iteration: int, miou: float, accuracy: float, best: bool) -> None:
        """A line."""
        ending = ", the best so far" if best else ""
        self.note(f"after {iteration} steps: mIoU {100 * miou:.2f} %, accuracy {100 * accuracy:.2f} %{ending}")

    def done(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar, self._advance, self._what = None, _nothing, ""

    def _open(self, what: str, total: int) -> None:
        self.done()
        self._bar = render.progress(self.session, what, total=total)
        self._advance, self._what = self._bar.__enter__(), what


def _nothing(*values: object, **settings: object) -> None:
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def plan_table(plan: TrainPlan) -> RenderableType:
    """The dry run's answer."""
    batch = f"{plan.effective_batch} = {plan.processes} x {plan.batch_size} x {plan.accumulate}"
    rows = [
        ("model", plan.model),
        ("first weights", plan.init),
        ("device", f"{plan.device}; {plan.processes} process{'es' * (plan.processes != 1)}"),
        ("data", f"{plan.train_pictures:,} pictures to train on, {plan.val_pictures:,} to evaluate on"),
        ("classes", str(plan.classes)),
        ("parameters", f"{plan.parameters:,}, of which {plan.trained:,} learn"),
        ("effective batch", f"{batch} (processes x batch x accumulated), crop {plan.crop}x{plan.crop}"),
        ("learning rate", f"{plan.lr:g}, falling to {plan.last_lr:.3g}"),
        ("steps", f"{plan.iterations:,}: {plan.passes:.1f} passes over the pictures"),
        ("evaluations", str(plan.evaluations)),
        ("checkpoints", f"last, previous, best and {plan.checkpoints} numbered"),
        ("memory", f"{plan.memory_bytes / 1e9:.2f} GB per process (measured)"),
        ("time", f"{plan.seconds_per_step:.3g} s per step: {_duration(plan.training_seconds)}, evaluations excluded"),
        ("run folder", f"{plan.out} (not created)"),
        *(("note", note) for note in plan.notes),
    ]
    return render.record_table(rows)


def report_table(report: TrainReport) -> RenderableType:
    """The result of a training."""
    rows = [
        ("model", report.model),
        ("steps", f"{report.iterations:,} in {_duration(report.seconds)}" + _resumed(report)),
        ("mIoU", f"{100 * report.mean_iou:.2f} %"),
        ("accuracy", f"{100 * report.pixel_accuracy:.2f} % of the pixels, {100 * report.mean_accuracy:.2f} % by class"),
        ("best mIoU", f"{100 * report.best.miou:.2f} % after {report.best.iteration:,} steps"),
        ("checkpoint", str(report.checkpoint)),
        ("best checkpoint", str(report.best_checkpoint)),
        ("evaluation", str(report.evaluation)),
        ("run folder", str(report.out)),
    ]
    return render.record_table(rows)


def _resumed(report: TrainReport) -> str:
    return f", resumed after {report.resumed_at:,}" if report.resumed_at else ""
