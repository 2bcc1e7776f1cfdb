"""Owns `dgmn2 train`: train or fine-tune a model."""

from __future__ import annotations

from typing import Any

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

_COUNT, _SIDE = click.IntRange(0, 10**9), click.IntRange(1, 16384)


@click.command()
@model_argument
@click.option(
    "--data-root",
    type=PATH,
    metavar="DIR",
    envvar="CITYSCAPES_DATASET",
    help="Cityscapes tree, or a folder with a dataset.toml.  [default: the configuration's]",
)
@click.option("--out", type=PATH, metavar="DIR", help="Run folder.  [default: runs/NAME]")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Processes here.")
@click.option("--max-iters", type=click.IntRange(1, 10**9), metavar="N", help="Optimiser steps.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Pictures per process and forward pass.")
@click.option("--accumulate", type=click.IntRange(1), metavar="N", help="Forward passes per optimiser step.")
@click.option("--crop", type=_SIDE, metavar="N", help="Side of the training crop.")
@click.option("--scale", type=SIZE, metavar="WxH", help="Size pictures are fitted into, in training and evaluation.")
@click.option("--window", type=_SIDE, metavar="N", help="Side of a window of the evaluation.")
@click.option("--stride", type=_SIDE, metavar="N", help="Step between its windows.")
@click.option(
    "--resume", type=NAME, is_flag=False, flag_value="auto", metavar="[auto|PATH]", help="Go on with the run in --out."
)
@click.option("--force", is_flag=True, help="Resume although the configuration differs.")
@click.option("--from", "init", metavar="imagenet|scratch|FILE", help="First weights.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Number format of the forward pass.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Seed of everything random.")
@click.option("--deterministic", is_flag=True, default=None, help="Refuse what depends on the run (on GPUs).")
@click.option("--val-every", type=_COUNT, metavar="N", help="Evaluate after N steps; 0: only at the end.")
@click.option("--save-every", type=_COUNT, metavar="N", help="Keep a numbered checkpoint after N steps; 0: none.")
@click.option("--keep", type=_COUNT, metavar="N", help="Numbered checkpoints that stay; 0: all.")
@click.option("--ema", is_flag=True, default=None, help="Keep, evaluate and save a moving average of the weights.")
@click.option("--freeze-backbone", is_flag=True, default=None, help="Train the head only.")
@click.option(
    "--class-weights",
    type=NAME,
    metavar="auto|FILE",
    help="Loss weights: counted from the labels, or a line NAME = WEIGHT each.",
)
@click.option("--workers", type=click.IntRange(0, 256), metavar="N", help="Loader processes per training process.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting: optim.lr=5e-5.")
@click.option("--dry-run", is_flag=True, help="Only check, measure three steps, and show the plan.")
@device_option
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="Attention op.")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads per process.")
@pass_session
def train(session: Session, model: str, **options: Any) -> None:
    """Train MODEL: a zoo key, a published configuration's name, or a configuration file.

    The run folder gets the resolved configuration, a log (JSONL, TensorBoard), curves, sample predictions, checkpoints
    (last, best, every N steps) and the final evaluation. An interrupted run goes on with `--resume`, bit for bit.
    Settings that no option names are the configuration's: for a published model, its published recipe.
    """
    from dgmn2cli.cli import train_views as views
    from dgmn2cli.training import plan, request, run

    recipe, out = views.recipe(session, model, options, views.overrides(options))
    named = any(text.strip().startswith("model.num_classes") for text in options["overrides"])
    wanted = request.TrainRequest(
        recipe.config,
        out,
        recipe.entry.key if recipe.entry else recipe.config.name,
        adapt_classes=recipe.entry is not None and not named,
        processes=options["gpus"],
        device=options["device"],
        backend=options["backend"],
        threads=options["threads"],
        resume=options["resume"] or "",
        force=options["force"],
        zoo_file=session.zoo_file,
        cache=session.cache,
    )
    watch = views.Console(session)
    try:
        if options["dry_run"]:
            planned = plan.plan_training(wanted, watch)
        else:
            report = run.train(wanted, watch)
    finally:
        watch.done()
    if not run.speaks():
        return
    if options["dry_run"]:
        render.emit(session, planned, lambda: views.plan_table(planned))
    else:
        render.emit(session, report, lambda: views.report_table(report))
