"""`dgmn2 benchmark`: what a network, an op or decoding costs on this machine, beside other implementations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dgmn2cli.bench import BASELINES, BENCHES, RATIO_HEADING
from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import (
    OUTPUT_FILE,
    PATH,
    SIZE,
    OutputType,
    RunOptions,
    Session,
    complete_model,
    pass_session,
    with_run,
)
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.errors import printable
from dgmn2cli.files import check_file

if TYPE_CHECKING:
    from dgmn2cli.bench.tables import TextTable
    from dgmn2cli.model.segmentor import Segmentor


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option("--all", "every", is_flag=True, help="Measure all published models.")
@click.option("--bench", type=click.Choice(BENCHES), default="infer", help="What to measure.")
@click.option(
    "--input",
    "size",
    type=SIZE,
    metavar="WxH",
    help="Size of the window or (e2e, decode, stream) the image, in pixels.  [default: the window; e2e, stream: "
    "2048x1024; decode: several]",
)
@click.option(
    "--window",
    type=click.IntRange(33, 8192),
    metavar="N",
    help="Side of a square window, in pixels.  [default: the model's, 769]",
)
@click.option("--batch", type=click.IntRange(1, 1024), metavar="N", help="Windows at a time.  [default: 1; train: 2]")
@click.option("--warmup", type=click.IntRange(0), default=1, metavar="N", help="Rounds not counted.")
@click.option("--iters", type=click.IntRange(1), default=5, metavar="N", help="Rounds that count.")
@click.option(
    "--against",
    default="plain,torchvision",
    metavar="NAMES",
    help=f"Baselines measured in turn with it: some of {', '.join(BASELINES)}, comma-separated, or none.",
)
@click.option("--graph", type=PATH, metavar="DIR|FILE", help="Measure this exported graph alone, by its protocol.")
@click.option(
    "--runtime", type=click.Choice(protocol.RUNTIMES[1:]), help="What runs the --graph.  [default: those installed]"
)
@click.option(
    "--published-order",
    is_flag=True,
    help="Run the operations in the published order: slower, the same up to rounding.",
)
@click.option("--memory/--no-memory", default=True, help="Measure peak memory, too.")
@click.option("--csv", type=OUTPUT_FILE, metavar="FILE", help="Write the rows, and which machine it was, as CSV.")
@click.option("--plot", type=OutputType(".png", ".svg"), metavar="FILE", help="Draw the figures as bars (PNG or SVG).")
@with_run
@pass_session
def benchmark(
    session: Session,
    models: tuple[str, ...],
    every: bool,
    bench: str,
    size: tuple[int, int] | None,
    window: int | None,
    batch: int | None,
    warmup: int,
    iters: int,
    against: str,
    graph: Path | None,
    runtime: str | None,
    published_order: bool,
    memory: bool,
    csv: Path | None,
    plot: Path | None,
    run: RunOptions,
) -> None:
    """Measure MODELs (the default model if none): speed, memory and efficiency beside the published design's.

    infer: a window; train: a training step; op: the attention op alone; e2e: a whole image; profile: what a window's
    time goes into; decode: reading image files; stream: many images through the pipeline of `infer`.
    """
    from dgmn2cli.bench.report import write_csv
    from dgmn2cli.bench.request import Request
    from dgmn2cli.bench.run import run_benchmark
    from dgmn2cli.bench.tables import bar_groups, footer, tables
    from dgmn2cli.inference.graph import load_graph
    from dgmn2cli.inference.load import resolve
    from dgmn2cli.inference.runtimes import installed
    from dgmn2cli.report.charts import bar_chart
    from dgmn2cli.runtime import require_compilable, resolve_device, set_threads

    for target in (csv, plot):
        if target is not None:
            check_file(target)  # now, not after an hour of measuring
    zoo = session.zoo()
    names = [entry.key for entry in zoo.segmentors] if every else models or (zoo.default,)
    set_threads(run.threads)
    device = resolve_device("cpu" if graph is not None and run.device == "auto" else run.device)
    if run.compiled:
        require_compilable(device)
    baselines = tuple(name for name in against.split(",") if name not in ("", "none"))
    found = None
    if graph is not None:
        if models or every or bench != "infer" or device.type != "cpu" or run.dtype != "float32" or run.compiled:
            raise click.UsageError("--graph is measured alone: its windows, on the CPU, as it was exported")
        found, baselines = load_graph(graph), (runtime,) if runtime else installed()
    elif runtime:
        raise click.UsageError(f"--runtime {runtime} needs --graph DIR; beside a network: --against {runtime}")
    how = (device, run.dtype, run.backend, run.compiled, not published_order)
    request = Request(bench, *how, size, window, batch, baselines, warmup, iters, memory, _exporter(baselines))
    with TerminalObserver(session) as observer:
        report = run_benchmark([resolve(name, zoo=zoo) for name in names], request, observer, found)
    if csv:
        write_csv(report, csv)
    if plot:
        machine = report.machine
        subtitle = f"{machine.gpu or machine.processor}; {machine.versions}; {machine.time[:10]}"
        bar_chart(bar_groups(report), plot, f"dgmn2 benchmark --bench {bench}", subtitle)
    render.emit(session, report, lambda: [*map(_Drawn, tables(report)), *map(Text, footer(report))])


def _exporter(baselines: tuple[str, ...]) -> Callable[[Segmentor], Any] | None:
    """What makes a graph of a network, where a baseline runs one and the packages for it are there."""
    from importlib.util import find_spec

    if not set(protocol.RUNTIMES) & set(baselines) or find_spec("onnx") is None:
        return None
    from dgmn2cli.export.graph import build_graph

    return build_graph


class _Drawn:
    """A table of figures; turned, with a column for each row, where the terminal is too narrow for it."""

    def __init__(self, table: TextTable) -> None:
        self.title, self.rows = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        upright = self._upright()
        needed = Measurement.get(console, options.update(max_width=render.UNBOUNDED), upright).minimum
        yield upright if needed <= options.max_width else self._turned()

    def _upright(self) -> Table:
        from dgmn2cli.bench.tables import WORDS

        numbers = tuple(heading for heading in self.rows[0] if heading not in WORDS)
        drawn = render.make_table(*self.rows[0], right=numbers, title=self.title)
        for row in self.rows:
            drawn.add_row(*(self._cell(heading, cell) for heading, cell in row.items()))
        return drawn

    def _turned(self) -> Table:
        first, *others = self.rows[0]
        drawn = render.make_table(first, *(row[first] for row in self.rows), title=self.title)
        for heading in others:
            drawn.add_row(heading, *(self._cell(heading, row[heading]) for row in self.rows))
        return drawn

    def _cell(self, heading: str, text: str) -> Text:
        return Text(printable(text), style="bold" if heading == RATIO_HEADING else "")
