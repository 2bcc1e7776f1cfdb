"""`dgmn2 video`: segment a video."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import KINDS, PATH, NumberType, ParsedType, Session, model_option, pass_session
from dgmn2cli.cli.progress import TerminalObserver, duration

if TYPE_CHECKING:
    from dgmn2cli.inference.plan import Settings
    from dgmn2cli.video.run import FirstFrame, VideoReport

LONG = 60.0  # seconds of work about which a word is said


def _parse_time(text: str) -> float:
    """Seconds of `12.5`, `1:23` or `1:02:03.5`."""
    match = re.fullmatch(r"(?:(?:([0-9]{1,3}):)?([0-9]{1,2}):)?([0-9]{1,7}(?:\.[0-9]{1,6})?)", text)
    if not match or (match[2] and float(match[3]) >= 60):
        raise ValueError(f"'{text[:60]}' is no time: seconds, or [H:]M:S, such as 12.5 or 1:02:03")
    return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3])


TIME = ParsedType("time", _parse_time)


@click.command()
@click.argument("source", metavar="VIDEO")
@model_option
@click.option("-o", "--out", type=PATH, required=True, metavar="FILE", help="Film to write: .mp4, .mov or .mkv.")
@click.option(
    "--save",
    type=KINDS,
    default="overlay",
    metavar="KINDS",
    help="What to write: overlay (the film), ids (lossless film of class ids), jsonl (a line per frame); "
    "comma-separated.",
)
@click.option(
    "--every", type=click.IntRange(1, 1_000_000), default=1, metavar="N", help="Segment every N-th frame only."
)
@click.option("--from", "start", type=TIME, metavar="TIME", help="Where to begin: seconds, or [H:]M:S.")
@click.option("--to", "stop", type=TIME, metavar="TIME", help="Where to end, likewise.")
@click.option(
    "--smooth",
    type=NumberType(0, 1, max_open=True),
    default=0.0,
    metavar="A",
    help="Average over time where the image stands still, such as 0.8; 0: each frame by itself.",
)
@click.option("--metrics", "measure", is_flag=True, help="Tell how steady the classes are: TC, VC8, VC16.")
@click.option("--no-audio", is_flag=True, help="Leave out the sound; else it is copied.")
@click.option(
    "--alpha", type=NumberType(0, 1), default=0.5, metavar="F", help="Opacity of the classes' colours in overlays."
)
@click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
@protocol.with_settings
@protocol.with_network
@pass_session
def video(
    session: Session,
    source: str,
    model: str,
    out: Path,
    save: tuple[str, ...],
    every: int,
    start: float | None,
    stop: float | None,
    smooth: float,
    measure: bool,
    no_audio: bool,
    alpha: float,
    overwrite: bool,
    settings: Settings,
    network: protocol.NetworkOptions,
) -> None:
    """Segment VIDEO, a file or a URL (http, https, rtsp), into a film with the classes' colours.

    Times, rotation and sound are kept. Needs the extra: pip install 'dgmn2cli[video]'

    Example: dgmn2 video drive.mp4 -o drive_classes.mp4 --every 5
    """
    protocol.refuse_offline(session, model, network.graph or network.load.checkpoint)
    from dgmn2cli.video.outputs import VideoRequest, check_request
    from dgmn2cli.video.run import FirstFrame, segment_video
    from dgmn2cli.video.source import Span, open_video

    request, span = VideoRequest(out, save, smooth, measure, alpha), Span(start, stop, every)
    sound = not no_audio and "overlay" in save
    opened = open_video(source, span, settings.max_pixels, sound=sound, offline=session.offline)
    with TerminalObserver(session, notices={FirstFrame: _cost}) as observer, opened as found:
        check_request(request, found, overwrite)
        segmenter = protocol.open_network(session, model, network, settings, observer)
        report = segment_video(segmenter, found, request, settings, observer)
    render.emit(session, report, lambda: _summary(report))


def _cost(first: FirstFrame) -> str | None:
    """What the whole video will take, where that is long."""
    each = f"a frame takes {first.seconds:.1f} s ({first.windows} window{'s' * (first.windows != 1)})"
    if first.frames is None:
        return f"{each}; how many there are is not known: --to sets an end" if first.seconds > 1 else None
    whole = first.seconds * first.frames
    hint = "; --every N, a smaller --scale and --window, a GPU or an exported graph (--graph) take less"
    return f"{each}: {first.frames} frames in about {duration(whole)}{hint}" if whole > LONG else None


def _summary(report: VideoReport) -> list[Table | Text]:
    table = render.make_table("class", "pixels", "share", right=("pixels", "share"))
    for share in report.classes:
        table.add_row(share.name, f"{share.pixels:,}", f"{100 * share.share:.1f} %")
    run, found, lines = report.run, report.video, [f"  {kind}: {path}" for kind, path in report.outputs.items()]
    about = []
    if report.steadiness is not None:
        shown = {"TC": report.steadiness.tc, "VC8": report.steadiness.vc8, "VC16": report.steadiness.vc16}
        values = [f"{name} {render.percent(None if value != value else 100 * value)}" for name, value in shown.items()]
        values.append(f"changing pixels {100 * report.steadiness.changing:.2f} %")
        about.append(f"{', '.join(values)} (TC over {100 * report.steadiness.tc_seen:.1f} % of the pixels)")
    windows = f"{report.windows} windows, {report.reused} of them as in the frame before and not computed again"
    damaged = f", {report.damaged} damaged frames left out" if report.damaged else ""
    about.append(f"{report.frames} frames of {found.width}x{found.height}{damaged}; {windows}")
    about.append(
        f"{report.seconds:.1f} s with {run.title} ({run.precision}, {run.form}) on {run.device_name}, {run.engine}"
    )
    return [table, render.lines(*lines), render.prose(*about)]
