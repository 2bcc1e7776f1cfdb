"""`dgmn2 train`: train or fine-tune a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from dgmn2cli.cli import options, render
from dgmn2cli.cli.options import NAME, PATH, SIZE, Session
from dgmn2cli.cli.progress import TerminalObserver, duration

if TYPE_CHECKING:
    from dgmn2cli.inference.load import Recipe
    from dgmn2cli.training.plan import TrainPlan
    from dgmn2cli.training.report import Evaluated, TrainReport

_DATA = "Cityscapes tree, or a folder with a dataset.toml.  [default: the configuration's]"
_WEIGHTS = "Loss weights; auto: counted from the labels; FILE: a line NAME = WEIGHT for each class."
_COUNT, _SIDE = click.IntRange(0, 10**9), click.IntRange(1, 16384)
_ANY, _MANY, _SEED = click.IntRange(1), click.IntRange(1, 10**9), click.IntRange(0, 2**32 - 1)


def _parse_batch(text: str) -> int:
    if text.lower() == "auto":
        return 0
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise ValueError(f"'{text[:60]}' is neither 'auto' nor a number from 1")
    return int(text)


_BATCH = options.ParsedType("batch size", _parse_batch)
# an option, the setting it gives, its type (None: a flag), its metavar, its help
_SETTINGS: tuple[tuple[str, str, Any, str | None, str], ...] = (
    ("--data-root", "data.root", PATH, "DIR", _DATA),
    ("--max-iters", "train.iters", _MANY, "N", "Optimiser steps."),
    ("--batch-size", "train.batch_size", _BATCH, "N|auto", "Images per process and forward pass; auto: what fits."),
    ("--loss", "loss.kind", click.Choice(options.LOSSES), None, "Loss to minimise."),
    ("--accumulate", "train.accumulate", _ANY, "N", "Forward passes per optimiser step."),
    ("--crop", "augment.crop", _SIDE, "N", "Side of the training crop, in pixels."),
    (
        "--scale",
        "augment.scale",
        SIZE,
        "WxH",
        "Size, in pixels, that images are fitted into, in training and evaluation.",
    ),
    ("--window", "inference.window", _SIDE, "N", "Side of a window of the evaluation, in pixels."),
    ("--stride", "inference.stride", _SIDE, "N", "Pixels from one window of the evaluation to the next."),
    (
        "--from",
        "train.init",
        str,
        "imagenet|scratch|FILE",
        "Weights to start from: the backbone's of ImageNet, none, or a checkpoint's.",
    ),
    ("--dtype", "train.dtype", click.Choice(options.DTYPES), None, "Dtype of the forward pass."),
    ("--seed", "train.seed", _SEED, "N", "Seed of everything random."),
    ("--deterministic", "train.deterministic", None, None, "Use only operations that repeat exactly (on GPUs)."),
    ("--val-every", "train.val_every", _COUNT, "N", "Evaluate every N steps; 0: only at the end."),
    ("--patience", "train.patience", _COUNT, "N", "Stop after N evaluations without a better mIoU; 0: never."),
    ("--save-every", "train.save_every", _COUNT, "N", "Keep a numbered checkpoint every N steps; 0: none."),
    ("--keep", "train.keep", _COUNT, "N", "Numbered checkpoints that stay; 0: all."),
    ("--ema", "train.ema", None, None, "Keep, evaluate and save a moving average of the weights."),
    ("--freeze-backbone", "train.freeze_backbone", None, None, "Train the head only."),
    ("--class-weights", "train.class_weights_from", NAME, "auto|FILE", _WEIGHTS),
    ("--logger", "train.logger", click.Choice(options.LOGGERS), None, "Curves for TensorBoard, or for W&B as well."),
    ("--workers", "data.workers", click.IntRange(0, 256), "N", "Loader processes per training process."),
)


def _given(**values: Any) -> dict[str, object]:
    """The settings that options name, by dotted key."""
    given = {key: values[key.replace(".", "__")] for _, key, *_ in _SETTINGS}
    given = {key: value for key, value in given.items() if value is not None}
    if "data.root" in given:
        given["data.root"] = str(given["data.root"])
    if "augment.scale" in given:
        given["inference.scale"] = given["augment.scale"]
    if "train.class_weights_from" in given:
        given["train.class_weights"] = []  # those a resumed run has counted or read before
    return given


@click.command()
@options.model_argument
@click.option("-o", "--out", type=PATH, metavar="DIR", help="Run folder.  [default: runs/NAME]")
@options.gpus_option
@options.grouped(
    "settings",
    _given,
    *(
        click.option(
            *(name, key.replace(".", "__")), type=kind, metavar=metavar, help=text, is_flag=kind is None, default=None
        )
        for name, key, kind, metavar, text in _SETTINGS
    ),
)
@click.option(
    "--resume",
    type=NAME,
    is_flag=False,
    flag_value="auto",
    metavar="[auto|PATH]",
    help="Go on with the run in --out, from its newest state or from this checkpoint.",
)
@click.option("--force", is_flag=True, help="Resume although settings, data or software differ.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting of `dgmn2 config list`, such as optim.lr=5e-5.",
)
@click.option("--dry-run", is_flag=True, help="Only check, measure a few steps, and show the plan.")
@options.device_option
@options.backend_option
@options.threads_option
@options.pass_session
def train(
    session: Session,
    model: str,
    out: Path | None,
    gpus: int,
    settings: dict[str, object],
    resume: str | None,
    force: bool,
    overrides: tuple[str, ...],
    dry_run: bool,
    device: str,
    backend: str,
    threads: int | None,
) -> None:
    """Train MODEL: a zoo key, a published configuration's name, or a configuration file.

    The run folder gets the resolved configuration, a log (JSONL, TensorBoard), curves, sample predictions, checkpoints
    (last, best, every N steps) and the final evaluation. An interrupted run goes on with `--resume`, bit for bit.
    Settings that no option names are the configuration's: for a published model, its published recipe.
    """
    if resume and dry_run:
        raise click.UsageError("--dry-run plans a new run: leave out --resume", click.get_current_context())
    if not resume:
        _require_first_weights(session, model, settings, overrides)
    from dgmn2cli.distributed.group import launched_rank
    from dgmn2cli.training.plan import plan_training
    from dgmn2cli.training.report import Evaluated
    from dgmn2cli.training.request import TrainRequest
    from dgmn2cli.training.run import train as run_training

    request = TrainRequest.of(
        _recipe(session, model, settings, overrides, out, resumes=bool(resume)),
        out,
        classes_named=any(text.strip().startswith("model.num_classes") for text in overrides),
        processes=gpus,
        device=device,
        backend=backend,
        threads=threads,
        resume=resume or "",
        force=force,
        zoo_file=session.zoo_file,
        cache=session.cache,
    )
    with TerminalObserver(session, notices={Evaluated: evaluated}) as observer:
        result = plan_training(request, observer) if dry_run else run_training(request, observer)
    if launched_rank() == 0:
        render.emit(session, result, lambda: _table(result))


def _require_first_weights(
    session: Session, model: str, settings: Mapping[str, object], overrides: Sequence[str]
) -> None:
    """Refuses a training whose first weights are not there, before torch is loaded."""
    from dgmn2cli.config import is_path, load_config
    from dgmn2cli.training.initial_source import find_initial_weights

    published = not is_path(model)
    config = load_config(session.zoo().find(model).config if published else Path(model), overrides, settings)
    find_initial_weights(config.train.init, config.model.backbone, session.zoo_file, session.cache)


def _recipe(
    session: Session,
    model: str,
    settings: Mapping[str, object],
    overrides: Sequence[str],
    out: Path | None,
    *,
    resumes: bool,
) -> Recipe:
    """The configuration to train; `--resume` without a model takes the run's own.

    The environment's data folder is for the published configurations; a file of the user's says itself where its is.

    Args:
        settings: values that options give to settings. `overrides`, those of `--set`, win.
    """
    from dgmn2cli.inference.load import resolve
    from dgmn2cli.training.request import configuration_of

    source = click.get_current_context().get_parameter_source("data__root")
    typed = dict(settings)
    if source is click.core.ParameterSource.ENVIRONMENT:
        typed.pop("data.root", None)
    if resumes and not options.model_typed():
        return resolve(configuration_of(out), overrides, values=typed)
    found = resolve(model, overrides, session.zoo(), typed)
    if found.entry is not None and typed != settings:
        found = resolve(model, overrides, session.zoo(), settings)
    return found


def evaluated(result: Evaluated) -> str:
    """An evaluation within the training."""
    ending = ", the best so far" if result.best else ""
    figures = f"mIoU {100 * result.miou:.2f} %, accuracy {100 * result.accuracy:.2f} %"
    return f"after {result.iteration} steps: {figures}{ending}"


def _table(result: TrainPlan | TrainReport) -> RenderableType:
    """The answer of a dry run or of a training."""
    from dgmn2cli.training.plan import TrainPlan

    return _plan_table(result) if isinstance(result, TrainPlan) else _report_table(result)


def _plan_table(plan: TrainPlan) -> RenderableType:
    batch = f"{plan.effective_batch} = {plan.processes} x {plan.batch_size} x {plan.accumulate}"
    beside = f"evaluations about {duration(plan.evaluation_seconds)}"
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
        ("time", f"{plan.seconds_per_step:.3g} s per step: {duration(plan.training_seconds)}, {beside}"),
        ("run folder", f"{plan.out} (left as it is)"),
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
