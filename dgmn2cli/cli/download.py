"""`dgmn2 download`: get model files, verified."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from dgmn2cli.cli import render
from dgmn2cli.cli.options import OUTPUT_FILE, PATH, SECONDS, Session, complete_model, pass_session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.errors import ConfigError, Dgmn2Error
from dgmn2cli.zoo import AnyEntry, Source, locate
from dgmn2cli.zoo.manifest import shown

if TYPE_CHECKING:
    from dgmn2cli.zoo.cache import FetchedFile

HASH_WORDS = {"pinned": "as the manifest says", "recorded": "as recorded earlier", "new": "recorded now"}


@dataclass(frozen=True)
class Failure:
    """An entry that could not be had: its key, the message, the exit code it stands for."""

    key: str
    error: str
    exit_code: int


@dataclass(frozen=True)
class DownloadReport:
    """What is there now, verified; what is not; the bundle written."""

    files: tuple[FetchedFile, ...]
    failures: tuple[Failure, ...] = ()
    bundle: Path | None = None


@click.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_model)
@click.option("--all", "everything", is_flag=True, help="Get all models of the zoo.")
@click.option("--backbone", "backbones", multiple=True, metavar="SIZE", help="An ImageNet backbone: tiny, ..., or all.")
@click.option("--from", "offered", type=PATH, metavar="FILE|DIR", help="Adopt files you have, or a bundle.")
@click.option("--source", metavar="N|URL", help="Use only the N-th source of `dgmn2 zoo show`, or this address.")
@click.option("--dest", type=PATH, metavar="DIR", help="Also copy the files there, under their published names.")
@click.option(
    "--bundle", type=OUTPUT_FILE, metavar="TAR", help="Also write them to one file, for a site without network."
)
@click.option(
    "--retries", type=click.IntRange(0, 100), default=3, metavar="N", help="Further attempts after a failure."
)
@click.option(
    "--timeout", type=SECONDS, default="10,30,3600", metavar="SECONDS", help="CONNECT,READ,TOTAL, or TOTAL alone."
)
@click.option("--force", is_flag=True, help="Download even if a good file is there; replace files in --dest.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@pass_session
def download(
    session: Session,
    keys: tuple[str, ...],
    everything: bool,
    backbones: tuple[str, ...],
    offered: Path | None,
    source: str | None,
    dest: Path | None,
    bundle: Path | None,
    retries: int,
    timeout: tuple[float, float, float],
    force: bool,
    dry_run: bool,
) -> None:
    """Get models, the default one if none is named; the path of the file is the last line printed."""
    zoo = session.zoo()
    named: list[AnyEntry] = [zoo.entry(key) for key in keys]
    named += zoo.segmentors if everything else ()
    for size in backbones:
        named += zoo.backbones if size == "all" else (zoo.backbone(size),)
    if not named and offered is None:
        named.append(zoo.find(zoo.default))
    entries = list(dict.fromkeys(named))
    if source and (len(entries) != 1 or offered is not None):
        raise ConfigError("--source needs one model", hint="Name one KEY, and leave out --all and --from.")
    sources = [choose_source(entries[0], source)] if source else None
    wanted, cache = entries or [*zoo.segmentors, *zoo.backbones], session.cache_dir()
    if dry_run:
        lines = _adoption_plan(offered, wanted, cache) if offered is not None else _plan(entries, cache)
        render.emit(session, {"dry_run": lines}, lambda: render.lines(*lines))
        return
    from dgmn2cli.files import check_folder
    from dgmn2cli.zoo.bundle import adopt_offered, check_bundle_target, copy_to, write_bundle
    from dgmn2cli.zoo.fetch import fetch
    from dgmn2cli.zoo.http import Limits

    if bundle is not None:
        check_bundle_target(bundle)
    if dest is not None:
        check_folder(dest)
    error: Dgmn2Error | None = None
    with TerminalObserver(session) as observer:
        if offered is not None:
            every = bool(entries) and not everything
            files = adopt_offered(
                offered, wanted, all_wanted=every, cache=cache, verify_for=_check_for, observer=observer
            )
            report = DownloadReport(tuple(files))
        else:
            connect, read, total = timeout
            limits = Limits(connect=connect, read=read, total=total, retries=retries)

            def get(entry: AnyEntry) -> FetchedFile:
                return fetch(
                    entry,
                    cache=cache,
                    verify=_check_for(entry),
                    offline=session.offline,
                    force=force or sources is not None,
                    sources=sources,
                    limits=limits,
                    observer=observer,
                )

            report, error = collect(entries, get)
    if bundle is not None and error is None:
        report = replace(report, bundle=write_bundle(report.files, bundle))
    if dest is not None:
        copies = [copy_to(file, dest, zoo.entry(file.key).file_name, force) for file in report.files]
        report = replace(report, files=tuple(copies))
    render.emit(session, report, lambda: _lines(report))
    if error:
        raise error


def collect(
    entries: list[AnyEntry], get: Callable[[AnyEntry], FetchedFile]
) -> tuple[DownloadReport, Dgmn2Error | None]:
    """Gets every entry, whichever fail: the report, and the error to raise once it has been shown."""
    files: list[FetchedFile] = []
    errors: list[tuple[str, Dgmn2Error]] = []
    for entry in entries:
        try:
            files.append(get(entry))
        except Dgmn2Error as error:
            errors.append((entry.key, error))
    failures = tuple(Failure(key, str(error), error.exit_code) for key, error in errors)
    report = DownloadReport(tuple(files), failures)
    if len(errors) <= 1:
        return report, errors[0][1] if errors else None
    return report, type(errors[0][1])(
        f"{len(errors)} of {len(entries)} downloads failed",
        hint="The others are done; run it again for these." if files else "Nothing was downloaded.",
        faults=[f"{failure.key}: {failure.error}" for failure in failures],
    )


def choose_source(entry: AnyEntry, text: str) -> Source:
    """The source a user names: its number in the manifest, from 1, or a URL."""
    from gdown.parse_url import parse_url

    from dgmn2cli.zoo.manifest import DRIVE_ID, url_fault

    if re.fullmatch(r"[0-9]{1,3}", text):
        if 1 <= int(text) <= len(entry.sources):
            return entry.sources[int(text) - 1]
        why, hint = f"it has {len(entry.sources)}", f"See `dgmn2 zoo show {entry.key}`."
        raise ConfigError(f"no source {text}", where=entry.key, why=why, hint=hint)
    if fault := url_fault(text):
        hint = "Wanted a number, or an https address."
        raise ConfigError("cannot use the source", where=shown(text), why=f"it {fault}", hint=hint)
    drive = parse_url(text)[0]
    return Source("gdrive", drive) if drive and DRIVE_ID.fullmatch(drive) else Source("https", text)


def _check_for(entry: AnyEntry) -> Callable[[Path], str]:
    """The entry's structural check; torch is loaded only when there is something to check."""

    def check(path: Path) -> str:
        from dgmn2cli.inference.load import verify_weights

        return verify_weights(entry, path).sha256

    return check


def _adoption_plan(offered: Path, wanted: list[AnyEntry], cache: Path) -> list[str]:
    from dgmn2cli.zoo.bundle import plan_offered

    lines = plan_offered(offered, wanted, cache=cache, verify_for=_check_for)
    return lines or [f"nothing would be adopted: no file fits ({offered})"]


def _plan(entries: list[AnyEntry], cache: Path) -> list[str]:
    lines = []
    for entry in entries:
        places = ", else ".join(source.address for source in entry.sources)
        there = locate(entry, cache) is not None
        lines.append(f"{entry.key}: {'is there, would be hashed' if there else f'would be fetched from {places}'}")
    return lines


def _lines(report: DownloadReport) -> list[Text]:
    lines = []
    for file in report.files:
        how = "already there" if file.cached else f"{file.seconds:.1f} s from {file.source}"
        lines.append(f"{file.key}: {render.megabytes(file.size)}, {how}")
        lines.append(f"sha256 {file.sha256}, {HASH_WORDS[file.pin]}")
    if report.bundle:
        lines.append(f"bundle of {len(report.files)}: {report.bundle}")
    lines += [str(file.path) for file in report.files]
    return [render.lines(*lines)] if lines else []
