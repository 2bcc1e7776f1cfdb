"""`dgmn2 convert`: a model file in the other format, without its optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType
from rich.text import Text

from dgmn2cli.cli.options import PATH, Session, pass_session
from dgmn2cli.cli.render import emit, lines, make_table, megabytes, notice
from dgmn2cli.errors import printable

if TYPE_CHECKING:
    from dgmn2cli.checkpoint.convert import ConversionReport


@click.command()
@click.argument("source", type=PATH, metavar="IN")
@click.argument("target", type=PATH, metavar="OUT")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists; never IN.")
@click.option("--ema", is_flag=True, help="Write the moving average of the weights (EMA) that IN holds.")
@pass_session
def convert(session: Session, source: Path, target: Path, overwrite: bool, ema: bool) -> None:
    """Write the weights of IN to OUT, .pth or .safetensors as its name says, bit for bit, without the optimiser.

    Every entry is listed: kept or dropped. The path of OUT is the last line printed.
    """
    from dgmn2cli.checkpoint.convert import convert as convert_file

    report = convert_file(source, target, overwrite=overwrite, ema=ema)
    for note in report.notes:
        notice(session, note)
    emit(session, report, lambda: _lines(report))


def _lines(report: ConversionReport) -> list[RenderableType]:
    table = make_table("entry", "outcome", "shape", "type", "note")
    for line in report.lines:
        shape = "" if line.shape is None else "x".join(map(str, line.shape)) or "1 number"
        table.add_row(Text(printable(line.key)), line.outcome, shape, line.dtype, Text(printable(line.note)))
    sizes = f"{megabytes(report.source_size)} -> {megabytes(report.target_size)}, read again and compared"
    summary = f"{report.kept} kept, {report.dropped} dropped; {sizes}\nsha256 {report.target_sha256}"
    return [table, Text(summary), lines(str(report.target))]
