"""How `dgmn2 train` finds its configuration and shows a run: evaluations, plan and result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from dgmn2cli.cli import render
from dgmn2cli.cli.options import Session
from dgmn2cli.cli.progress import duration
from dgmn2cli.errors import ConfigError

if TYPE_CHECKING:
    from dgmn2cli.inference.load import Recipe
    from dgmn2cli.training.plan import TrainPlan
    from dgmn2cli.training.report import Evaluated, TrainReport

RUNS = Path("runs")


def recipe(
    session: Session,
    model: str,
    settings: Mapping[str, object],
    overrides: Sequence[str],
    out: Path | None,
    *,
    resumes: bool,
) -> tuple[Recipe, Path]:
    """The configuration to train and the run folder; `--resume` without a model takes the run's own configuration.

    The environment's data folder is for the published configurations; a file of the user's says itself where its is.

    Args:
        settings: values that options give to settings; None: not given. `overrides`, those of `--set`, win.

    Raises:
        ConfigError: no such model, or faults in the configuration.
    """
    from dgmn2cli.inference.load import resolve

    source = click.get_current_context().get_parameter_source("data_root")
    given = {key: value for key, value in settings.items() if value is not None}
    typed = dict(given)
    if source is click.core.ParameterSource.ENVIRONMENT:
        typed.pop("data.root", None)
    if resumes and not _model_named():
        if out is None:
            raise ConfigError("--resume needs to know the run", hint="Name its folder with --out, or its model.")
        own = out / "config.toml"
        if own.is_file():
            return resolve(str(own.absolute()), overrides, values=typed), out
    found = resolve(model, overrides, session.zoo(), typed)
    if found.entry is not None and typed != given:
        found = resolve(model, overrides, session.zoo(), given)
    return found, out or RUNS / (found.entry.key if found.entry else found.config.name)


def _model_named() -> bool:
    context = click.get_current_context()
    source = context.get_parameter_source("model")
    default = source in (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP, None)
    return bool(context.params.get("model_named")) or not default


def evaluated(result: Evaluated) -> str:
    """An evaluation within the training."""
    ending = ", the best so far" if result.best else ""
    figures = f"mIoU {100 * result.miou:.2f} %, accuracy {100 * result.accuracy:.2f} %"
    return f"after {result.iteration} steps: {figures}{ending}"


def table(result: TrainPlan | TrainReport) -> RenderableType:
    """The answer of a dry run or of a training."""
    from dgmn2cli.training.plan import TrainPlan

    return _plan_table(result) if isinstance(result, TrainPlan) else _report_table(result)


def _plan_table(plan: TrainPlan) -> RenderableType:
    batch = f"{plan.effective_batch} = {plan.processes} x {plan.batch_size} x {plan.accumulate}"
    rows = [
        ("model", plan.model),
        ("first weights", plan.init),
        ("device", f"{plan.device}; {plan.processes} process{'es' * (plan.processes != 1)}"),
        ("data", f"{plan.train_images:,} images to train on, {plan.val_images:,} to evaluate on"),
        ("classes", str(plan.classes)),
        ("parameters", f"{plan.parameters:,}, of which {plan.trained:,} learn"),
        ("effective batch", f"{batch} (processes x batch x accumulated), crop {plan.crop}x{plan.crop}"),
        ("learning rate", f"{plan.lr:g}, falling to {plan.last_lr:.3g}"),
        ("steps", f"{plan.iterations:,}: {plan.passes:.1f} passes over the images"),
        ("evaluations", str(plan.evaluations)),
        ("checkpoints", f"last, previous, best and {plan.checkpoints} numbered"),
        ("memory", f"{plan.memory_bytes / 1e9:.2f} GB per process (measured)"),
        ("time", f"{plan.seconds_per_step:.3g} s per step: {duration(plan.training_seconds)}, evaluations excluded"),
        ("run folder", f"{plan.out} (not created)"),
        *(("note", note) for note in plan.notes),
    ]
    return render.record_table(rows)


def _report_table(report: TrainReport) -> RenderableType:
    resumed = f", resumed after {report.resumed_at:,}" if report.resumed_at else ""
    rows = [
        ("model", report.model),
        ("steps", f"{report.iterations:,} in {duration(report.seconds)}" + resumed),
        ("mIoU", f"{100 * report.mean_iou:.2f} %"),
        ("accuracy", f"{100 * report.pixel_accuracy:.2f} % of the pixels, {100 * report.mean_accuracy:.2f} % by class"),
        ("best mIoU", f"{100 * report.best.miou:.2f} % after {report.best.iteration:,} steps"),
        ("checkpoint", str(report.checkpoint)),
        ("best checkpoint", str(report.best_checkpoint)),
        ("evaluation", str(report.evaluation)),
        ("run folder", str(report.out)),
    ]
    return render.record_table(rows)
