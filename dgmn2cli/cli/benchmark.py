"""Owns `dgmn2 benchmark`: what a network or an op costs on this machine, beside the published design."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from dgmn2cli.bench.names import BASELINES, BENCHES, RATIO_HEADING
from dgmn2cli.cli import render
from dgmn2cli.cli.options import PATH, SIZE, Session, complete_model, pass_session, run_options
from dgmn2cli.errors import printable
from dgmn2cli.files import check_file

SIDES = ", ".join(BASELINES)


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option("--all", "every", is_flag=True, help="All published models.")
@click.option("--bench", type=click.Choice(BENCHES), default="infer", show_default=True, help="What to measure.")
@click.option("--input", "size", type=SIZE, metavar="WxH", help="Size of the window; for e2e of the picture.")
@click.option("--window", type=click.IntRange(33, 8192), metavar="N", help="Side of a square window.  [default: 769]")
@click.option("--batch", type=click.IntRange(1, 1024), metavar="N", help="Windows at a time.  [default: 1; train: 2]")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, metavar="N", help="Rounds not counted.")
@click.option("--iters", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Rounds that count.")
@click.option(
    "--against",
    default="plain,torchvision",
    show_default=True,
    metavar="SIDES",
    help=f"Baselines measured in turn with it: some of {SIDES}, comma-separated, or none.",
)
@click.option("--published-order", is_flag=True, help="Run the operations as published, without the exact rewriting.")
@click.option("--memory/--no-memory", default=True, help="Measure peak memory.  [default: yes]")
@click.option("--csv", type=PATH, metavar="FILE", help="Write the rows and the machine there.")
@click.option("--plot", type=PATH, metavar="FILE.png", help="Draw the figures as bars there.")
@run_options
@pass_session
def benchmark(session: Session, models: tuple[str, ...], every: bool, **options: Any) -> None:
    """Measure MODELs (the default model if none): speed, memory and efficiency beside the published design's."""
    from dgmn2cli.bench.chart import chart
    from dgmn2cli.bench.report import write_csv
    from dgmn2cli.bench.run import Request, run_benchmark
    from dgmn2cli.bench.tables import footer, tables
    from dgmn2cli.data.images import write_png
    from dgmn2cli.inference.load import resolve
    from dgmn2cli.runtime import resolve_device, set_threads

    for target in (options["csv"], options["plot"]):
        if target is not None:
            check_file(target)  # now, not after an hour of measuring
    zoo = session.zoo()
    names = [entry.key for entry in zoo.segmentors] if every else models or (zoo.default,)
    set_threads(options["threads"])
    same = ("bench", "dtype", "backend", "compiled", "size", "window", "batch", "warmup", "iters", "memory")
    request = Request(
        device=resolve_device(options["device"]),
        fused=not options["published_order"],
        baselines=tuple(name for name in options["against"].split(",") if name not in ("", "none")),
        **{name: options[name] for name in same},
    )
    with render.progress(session, "measuring") as advance:
        report = run_benchmark(
            [resolve(name, zoo=zoo) for name in names], request, lambda doing: advance(0, description=doing)
        )
    if options["csv"]:
        write_csv(report, options["csv"])
    if options["plot"]:
        write_png(options["plot"], chart(report))
    render.emit(session, report, lambda: [*map(_drawn, tables(report)), *map(Text, footer(report))])


def _drawn(table: Any) -> Table:
    drawn = render.make_table(*table.headings, right=table.numbers, title=table.title)
    for row in table.rows:
        cells = zip(table.headings, row, strict=True)
        drawn.add_row(*(Text(printable(cell), style="bold" if name == RATIO_HEADING else "") for name, cell in cells))
    return drawn
