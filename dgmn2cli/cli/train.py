"""`dgmn2 train`: train or fine-tune a model."""

from __future__ import annotations

from pathlib import Path

import click

from dgmn2cli.cli import render
from dgmn2cli.cli.options import (
    BACKENDS,
    DTYPES,
    NAME,
    PATH,
    SIZE,
    Session,
    device_option,
    model_argument,
    pass_session,
)
from dgmn2cli.cli.progress import TerminalObserver

_DATA = "Cityscapes tree, or a folder with a dataset.toml.  [default: the configuration's]"
_WEIGHTS = "Loss weights: counted from the labels, or a line NAME = WEIGHT each."
_COUNT, _SIDE = click.IntRange(0, 10**9), click.IntRange(1, 16384)


@click.command()
@model_argument
@click.option("--data-root", type=PATH, metavar="DIR", envvar="CITYSCAPES_DATASET", help=_DATA)
@click.option("--out", type=PATH, metavar="DIR", help="Run folder.  [default: runs/NAME]")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Processes here.")
@click.option("--max-iters", type=click.IntRange(1, 10**9), metavar="N", help="Optimiser steps.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images per process and forward pass.")
@click.option("--accumulate", type=click.IntRange(1), metavar="N", help="Forward passes per optimiser step.")
@click.option("--crop", type=_SIDE, metavar="N", help="Side of the training crop.")
@click.option("--scale", type=SIZE, metavar="WxH", help="Size images are fitted into, in training and evaluation.")
@click.option("--window", type=_SIDE, metavar="N", help="Side of a window of the evaluation.")
@click.option("--stride", type=_SIDE, metavar="N", help="Step between its windows.")
@click.option(
    "--resume", type=NAME, is_flag=False, flag_value="auto", metavar="[auto|PATH]", help="Go on with the run in --out."
)
@click.option("--force", is_flag=True, help="Resume although settings, data or software differ.")
@click.option("--from", "init", metavar="imagenet|scratch|FILE", help="First weights.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Dtype of the forward pass.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Seed of everything random.")
@click.option("--deterministic", is_flag=True, default=None, help="Refuse what depends on the run (on GPUs).")
@click.option("--val-every", type=_COUNT, metavar="N", help="Evaluate after N steps; 0: only at the end.")
@click.option("--save-every", type=_COUNT, metavar="N", help="Keep a numbered checkpoint after N steps; 0: none.")
@click.option("--keep", type=_COUNT, metavar="N", help="Numbered checkpoints that stay; 0: all.")
@click.option("--ema", is_flag=True, default=None, help="Keep, evaluate and save a moving average of the weights.")
@click.option("--freeze-backbone", is_flag=True, default=None, help="Train the head only.")
@click.option("--class-weights", type=NAME, metavar="auto|FILE", help=_WEIGHTS)
@click.option("--workers", type=click.IntRange(0, 256), metavar="N", help="Loader processes per training process.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting: optim.lr=5e-5.")
@click.option("--dry-run", is_flag=True, help="Only check, measure three steps, and show the plan.")
@device_option
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="Attention op.")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads per process.")
@pass_session
def train(
    session: Session,
    model: str,
    data_root: Path | None,
    out: Path | None,
    gpus: int,
    max_iters: int | None,
    batch_size: int | None,
    accumulate: int | None,
    crop: int | None,
    scale: tuple[int, int] | None,
    window: int | None,
    stride: int | None,
    resume: str | None,
    force: bool,
    init: str | None,
    dtype: str | None,
    seed: int | None,
    deterministic: bool | None,
    val_every: int | None,
    save_every: int | None,
    keep: int | None,
    ema: bool | None,
    freeze_backbone: bool | None,
    class_weights: str | None,
    workers: int | None,
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
    from dgmn2cli.cli import train_views as views
    from dgmn2cli.distributed.group import launched_rank
    from dgmn2cli.training.plan import plan_training
    from dgmn2cli.training.report import Evaluated
    from dgmn2cli.training.request import TrainRequest
    from dgmn2cli.training.run import train as run_training

    settings: dict[str, object] = {
        "data.root": None if data_root is None else str(data_root),
        "data.workers": workers,
        "train.iters": max_iters,
        "train.batch_size": batch_size,
        "train.accumulate": accumulate,
        "train.init": init,
        "train.dtype": dtype,
        "train.seed": seed,
        "train.deterministic": deterministic,
        "train.val_every": val_every,
        "train.save_every": save_every,
        "train.keep": keep,
        "train.ema": ema,
        "train.freeze_backbone": freeze_backbone,
        "train.class_weights_from": class_weights,
        "train.class_weights": None if class_weights is None else [],  # those a resumed run has counted or read before
        "augment.crop": crop,
        "augment.scale": scale,
        "inference.scale": scale,
        "inference.window": window,
        "inference.stride": stride,
    }
    recipe, folder = views.recipe(session, model, settings, overrides, out, resumes=bool(resume))
    request = TrainRequest(
        recipe.config,
        folder,
        recipe.entry.key if recipe.entry else recipe.config.name,
        adapt_classes=recipe.entry is not None
        and not any(t.strip().startswith("model.num_classes") for t in overrides),
        processes=gpus,
        device=device,
        backend=backend,
        threads=threads,
        resume=resume or "",
        force=force,
        zoo_file=session.zoo_file,
        cache=session.cache,
    )
    with TerminalObserver(session, notices={Evaluated: views.evaluated}) as observer:
        result = plan_training(request, observer) if dry_run else run_training(request, observer)
    if launched_rank() == 0:
        render.emit(session, result, lambda: views.table(result))
