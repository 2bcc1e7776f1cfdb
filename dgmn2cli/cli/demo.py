"""Owns `dgmn2 demo`: the whole workflow on synthetic streets, in minutes."""

from __future__ import annotations

import os
from typing import Any

import click

from dgmn2cli.cli import render
from dgmn2cli.cli.options import BACKENDS, PATH, Session, device_option, pass_session


@click.command()
@click.option(
    "-o", "--out", type=PATH, default="dgmn2-demo", show_default=True, metavar="DIR", help="Folder for everything."
)
@click.option(
    "--iters", type=click.IntRange(1, 10**6), default=400, show_default=True, metavar="N", help="Training steps."
)
@click.option(
    "--scenes",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Scenes to train on; a quarter as many more are held out.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of scenes and training.",
)
@click.option("--picture", type=PATH, metavar="FILE", help="Photograph to segment.  [default: one that came along]")
@click.option("--overwrite", is_flag=True, help="Make the demo that is in the folder anew.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted demo.")
@device_option
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="Attention op.")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads.  [default: torch's]")
@pass_session
def demo(session: Session, **options: Any) -> None:
    """Draw synthetic streets, train on them, evaluate, segment, and write a page that shows it all.

    It takes about five minutes on two idle cores, needs no download and no GPU, and everything ends in one folder:
    index.html for a browser, contact_sheet.png, the data set, the run folder of the training with its checkpoint and
    curves, the evaluations and the segmented pictures. The figures are measured on drawings, and say nothing about
    the published models on real streets.
    """
    # threads that spin while they wait slow a busy machine down many times over; read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dgmn2cli.cli.demo_views import Console, report_table
    from dgmn2cli.demo import run
    from dgmn2cli.demo.request import DemoRequest

    watch = Console(session, options["out"])
    try:
        report = run.demo(DemoRequest(**options), watch)
    finally:
        watch.observer.end()
    render.emit(session, report, lambda: report_table(report))
