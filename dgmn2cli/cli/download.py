"""Owns `dgmn2 download`: get model files, verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dgmn2cli.cli import render
from dgmn2cli.cli.options import PATH, SECONDS, Session, complete_model, pass_session
from dgmn2cli.cli.weights import fetch_shown, structural_check, transfer_bar
from dgmn2cli.errors import ConfigError, printable
from dgmn2cli.zoo import AnyEntry, Zoo, locate

if TYPE_CHECKING:
    from dgmn2cli.zoo.downloads import DownloadReport

HASH_WORDS = {"pinned": "as the manifest says", "recorded": "as recorded earlier", "new": "recorded now"}


@click.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_model)
@click.option("--all", "everything", is_flag=True, help="All models of the zoo.")
@click.option("--backbone", "backbones", multiple=True, metavar="SIZE", help="An ImageNet backbone: tiny, ..., or all.")
@click.option("--from", "offered", type=PATH, metavar="FILE|DIR", help="Adopt files you have, or a bundle.")
@click.option("--source", metavar="N|URL", help="Use only this source.")
@click.option("--dest", type=PATH, metavar="DIR", help="Also copy the files there, under their published names.")
@click.option("--bundle", type=PATH, metavar="TAR", help="Also write them to one file, for a site without network.")
@click.option("--retries", type=click.IntRange(0, 100), default=3, show_default=True, help="Attempts after a failure.")
@click.option(
    "--timeout",
    type=SECONDS,
    default="10,30,3600",
    show_default=True,
    metavar="SECONDS",
    help="CONNECT,READ,TOTAL, or TOTAL alone.",
)
@click.option("--force", is_flag=True, help="Download even if a good file is there; replace files in --dest.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@pass_session
def download(session: Session, keys: tuple[str, ...], **options: Any) -> None:
    """Get models, the default one if none is named; the path of the file is the last line printed."""
    zoo = session.zoo()
    entries = _wanted(zoo, keys, options)
    if options["dry_run"]:
        _say_plan(session, zoo, entries, options["offered"])
        return
    from dgmn2cli.files import check_folder
    from dgmn2cli.zoo.downloads import collect, copy_to
    from dgmn2cli.zoo.offers import check_bundle_target, write_bundle

    if options["bundle"] is not None:
        check_bundle_target(options["bundle"])
    if options["dest"] is not None:
        check_folder(options["dest"])
    if options["offered"] is not None:
        report, error = _adopt(session, zoo, entries, options), None
    else:
        settings = _settings(options)
        report, error = collect(entries, lambda entry: fetch_shown(session, entry, **settings(entry)))
    if options["bundle"] is not None and error is None:
        report = replace(report, bundle=write_bundle(report.files, options["bundle"]))
    if options["dest"] is not None:
        copies = [
            copy_to(file, options["dest"], zoo.entry(file.key).file_name, options["force"]) for file in report.files
        ]
        report = replace(report, files=tuple(copies))
    render.emit(session, report, lambda: _lines(report))
    if error:
        raise error


def _wanted(zoo: Zoo, keys: tuple[str, ...], options: dict[str, Any]) -> list[AnyEntry]:
    """The entries named, each once, in the order named."""
    named: list[AnyEntry] = [zoo.entry(key) for key in keys]
    named += zoo.segmentors if options["everything"] else ()
    for size in options["backbones"]:
        named += zoo.backbones if size == "all" else (zoo.backbone(size),)
    if not named and options["offered"] is None:
        named.append(zoo.find(zoo.default))
    if options["source"] and (len(named) != 1 or options["offered"] is not None):
        raise ConfigError("--source needs one model", hint="Name one KEY, and leave out --all and --from.")
    return list(dict.fromkeys(named))


def _settings(options: dict[str, Any]) -> Any:
    """What `fetch` is told for an entry."""
    from dgmn2cli.zoo.downloads import choose_source
    from dgmn2cli.zoo.http import Limits

    connect, read, total = options["timeout"]
    limits = Limits(connect=connect, read=read, total=total, retries=options["retries"])

    def settings(entry: AnyEntry) -> dict[str, Any]:
        sources = [choose_source(entry, options["source"])] if options["source"] else None
        return {"force": options["force"] or sources is not None, "limits": limits, "sources": sources}

    return settings


def _adopt(session: Session, zoo: Zoo, entries: list[AnyEntry], options: dict[str, Any]) -> DownloadReport:
    """Takes over the user's files: of the entries named, or whatever is recognised."""
    from dgmn2cli.zoo.downloads import DownloadReport
    from dgmn2cli.zoo.offers import adopt_offered

    with transfer_bar(session, str(options["offered"])) as progress:
        files = adopt_offered(
            options["offered"],
            entries or [*zoo.segmentors, *zoo.backbones],
            all_wanted=bool(entries) and not options["everything"],
            cache=session.cache_dir(),
            verify_for=structural_check(session),
            progress=progress,
        )
    return DownloadReport(tuple(files))


def _say_plan(session: Session, zoo: Zoo, entries: list[AnyEntry], offered: Path | None) -> None:
    """What a run without `--dry-run` would do."""
    lines = []
    if offered is not None:
        from dgmn2cli.zoo.offers import plan_offered

        wanted, check = entries or [*zoo.segmentors, *zoo.backbones], structural_check(session)
        lines = plan_offered(offered, wanted, cache=session.cache_dir(), verify_for=check)
        lines = lines or [f"nothing would be adopted: no file fits ({offered})"]
        entries = []
    for entry in entries:
        there = locate(entry, session.cache_dir()) is not None
        places = ", else ".join(source.address for source in entry.sources)
        lines.append(f"{entry.key}: {'is there, would be hashed' if there else f'would be fetched from {places}'}")
    render.emit(session, {"dry_run": lines}, lambda: [Text(printable(line)) for line in lines])


def _lines(report: DownloadReport) -> list[Text]:
    """For each file what it is, and last its path alone."""
    lines = []
    for file in report.files:
        how = "already there" if file.cached else f"{file.seconds:.1f} s from {file.source}"
        lines.append(f"{file.key}: {render.megabytes(file.size)}, {how}")
        lines.append(f"sha256 {file.sha256}, {HASH_WORDS[file.pin]}")
    if report.bundle:
        lines.append(f"bundle of {len(report.files)}: {report.bundle}")
    lines += [str(file.path) for file in report.files]
    return [Text(printable(line)) for line in lines]
