"""`dgmn2 zoo`: what models there are, and what is known about their files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dgmn2cli.cli.options import PATH, NumberType, Session, complete_model, pass_session
from dgmn2cli.cli.render import MISSING, billions, emit, lines, make_table, megabytes, millions, percent, record_table
from dgmn2cli.errors import CheckFailed, ConfigError
from dgmn2cli.zoo import AnyEntry, ZooEntry, locate, pin_state
from dgmn2cli.zoo.cache import FileCheck, pin, verify_cache
from dgmn2cli.zoo.manifest import shown

PIN_MEANING = {
    "pinned": "pinned (the manifest states the hash)",
    "recorded": "recorded (noted after a verified download; checked at every load)",
    "unknown": "unknown (none is published; it is recorded after the first verified download)",
}


@click.group()
def zoo() -> None:
    """List and show the published models; check what is on disk."""


SORTS: dict[str, Callable[[ZooEntry], float | str]] = {
    "key": lambda entry: entry.key,
    "miou": lambda entry: -(entry.miou or 0),
    "ms-flip": lambda entry: -(entry.miou_ms_flip or 0),
    "params": lambda entry: entry.params,
    "gmacs": lambda entry: _work(entry),
}


@zoo.command("list", short_help="List the segmentation models.")
@click.argument("pattern", default="", required=False)
@click.option("--min-miou", type=NumberType(0, 100), metavar="F", help="Only those with this mIoU or more, in %.")
@click.option("--max-gmacs", type=NumberType(0), metavar="F", help="Only those with so many GMACs per window or fewer.")
@click.option("--pareto", is_flag=True, help="Only those that no other beats: as good with less work, or better.")
@click.option("--sort", type=click.Choice([*SORTS]), help="Best or smallest first.  [default: the zoo's order]")
@pass_session
def list_models(
    session: Session, pattern: str, min_miou: float | None, max_gmacs: float | None, pareto: bool, sort: str | None
) -> None:
    """List the segmentation models, all or those matching PATTERN (`*-tiny`, `pup`).

    Figures are single scale. `--pareto` looks at mIoU and GMACs, after the other conditions.

    Example: dgmn2 zoo list --pareto --max-gmacs 400 --sort gmacs
    """
    manifest = session.zoo()
    found = manifest.entries(pattern)
    if not found:
        raise ConfigError("no model matches", where=shown(pattern), hint="`dgmn2 zoo list` shows all models.")
    found = choose(found, min_miou=min_miou, max_gmacs=max_gmacs, pareto=pareto, sort=sort)
    if not found:
        hint = "Loosen --min-miou or --max-gmacs."
        raise ConfigError("no model matches", why="none fulfils all conditions", hint=hint)
    cache = session.known_cache()
    rows = [_describe(entry, cache) for entry in found]
    report = {"zoo": manifest.path, "default": manifest.default, "cache": cache, "models": rows}
    emit(session, report, lambda: _list_table(found, rows, manifest.default))


def choose(
    entries: tuple[ZooEntry, ...], *, min_miou: float | None, max_gmacs: float | None, pareto: bool, sort: str | None
) -> tuple[ZooEntry, ...]:
    """The entries that fulfil the conditions, sorted; see `dgmn2 zoo list --help`."""
    found = [
        entry
        for entry in entries
        if (min_miou is None or (entry.miou or 0) >= min_miou)
        and (max_gmacs is None or _work(entry) <= 1e9 * max_gmacs)
    ]
    if pareto:
        found = [entry for entry in found if not any(_beats(other, entry) for other in found)]
    return tuple(sorted(found, key=SORTS[sort]) if sort else found)


def _work(entry: ZooEntry) -> float:
    return math.inf if entry.macs_769 is None else entry.macs_769


def _beats(one: ZooEntry, other: ZooEntry) -> bool:
    mine, theirs = (one.miou or 0, -_work(one)), (other.miou or 0, -_work(other))
    return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


def _list_table(found: tuple[ZooEntry, ...], rows: list[dict[str, object]], default: str) -> list[RenderableType]:
    right = ("mIoU", "ms\n+flip", "params", "GMACs")
    table = make_table("key", "head", "backbone", *right, "on\ndisk", right=right, whole=("key",))
    for entry, row in zip(found, rows, strict=True):
        table.add_row(
            Text(entry.key, style="bold" if entry.key == default else ""),
            entry.head,
            entry.backbone.removeprefix("dgmn2_"),
            percent(entry.miou),
            percent(entry.miou_ms_flip),
            millions(entry.params),
            billions(entry.macs_769).removesuffix(" G"),
            "yes" if row["on_disk"] else "no",
        )
    legend = f"mIoU in percent; ms+flip: six scales and flips; GMACs per 769x769 window\nDefault model: {default}"
    return [table, Text(legend, style="dim")]


@zoo.command("show", short_help="Show all that is known about one model.")
@click.argument("key", required=False, shell_complete=complete_model)
@pass_session
def show_model(session: Session, key: str | None) -> None:
    """Show all that is known about KEY, a model or an ImageNet backbone (default: the default model)."""
    manifest = session.zoo()
    entry = manifest.entry(manifest.default if key is None else key)
    report = _describe(entry, session.known_cache())
    emit(session, report, lambda: _record(entry, report))


def _describe(entry: AnyEntry, cache: Path | None) -> dict[str, object]:
    cached = locate(entry, cache)
    return {
        **asdict(entry),
        "file_name": entry.file_name,
        "hash_state": pin_state(entry, cache),
        "expected_sha256": cached.sha256 if cached else entry.sha256,
        "on_disk": cached is not None,
        "path": cached.path if cached else None,
        "size_on_disk": cached.size if cached else None,
    }


def _record(entry: AnyEntry, report: dict[str, object]) -> Table:
    rows = [("key", entry.key)]
    if isinstance(entry, ZooEntry):
        rows += [("config", entry.config), ("head", entry.head), ("backbone", entry.backbone)]
        score = [
            ("iterations", f"{entry.iters:,}"),
            ("mIoU", f"{percent(entry.miou)} %  (protocol: {entry.protocol})"),
            ("mIoU ms+flip", f"{percent(entry.miou_ms_flip)} %"),
        ]
        cost = f"{billions(entry.macs_769)} per 769x769 window"
    else:
        score = [("top-1", f"{percent(entry.top1)} %")]
        cost = f"{billions(entry.macs_224)} per 224x224 image (published)"
    rows += [("dataset", entry.dataset), *score, ("parameters", f"{entry.params:,}"), ("MACs", cost)]
    rows += [("licence", entry.licence), ("paper", entry.paper)]
    rows += [(f"source {i}", source.address) for i, source in enumerate(entry.sources, 1)]
    size = report["size_on_disk"]
    rows += [
        ("file name", entry.file_name),
        ("size", megabytes(entry.size) if entry.size else "not published"),
        ("hash", PIN_MEANING[str(report["hash_state"])]),
        ("sha256", str(report["expected_sha256"] or MISSING)),
        ("on disk", f"{report['path']} ({megabytes(int(str(size)))})" if report["on_disk"] else "no"),
    ]
    if not report["on_disk"]:
        rows.append(("get it", f"dgmn2 download {entry.key}"))
    return record_table(rows)


@zoo.command("verify", short_help="Hash the files on disk again.")
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_model)
@click.option("--all", "everything", is_flag=True, help="Every entry; those not on disk are shown, too.")
@pass_session
def verify_files(session: Session, keys: tuple[str, ...], everything: bool) -> None:
    """Hash files of the cache again: those of KEY..., or all that are there. Exit 1 if one is damaged or missing."""
    manifest = session.zoo()
    entries = [manifest.entry(key) for key in keys] or [*manifest.segmentors, *manifest.backbones]
    from dgmn2cli.cli.progress import TerminalObserver  # progress bars take a while to import

    with TerminalObserver(session) as observer:
        checks = verify_cache(entries, session.cache_dir(), observer)
    shown_ones = [check for check in checks if keys or everything or check.state != "not on disk"]
    emit(session, {"cache": session.cache_dir(), "files": shown_ones}, lambda: _checks(shown_ones))
    bad = [c for c in checks if c.state == "damaged" or (keys and c.state == "not on disk")]
    if bad:
        keys_again = " ".join(check.key for check in bad[:4]) + (" ..." if len(bad) > 4 else "")
        raise CheckFailed(
            f"{len(bad)} of {len(shown_ones)} files are damaged or not on disk",
            hint=f"Get a good copy with `dgmn2 download {keys_again}`.",
            faults=[f"{check.key}: {check.state}" + (f" ({check.path})" if check.path else "") for check in bad],
        )


def _checks(checks: list[FileCheck]) -> RenderableType:
    if not checks:
        return Text("No file of the zoo is on disk.")
    table = make_table("key", "state", "hash", "size", "sha256", right=("size",), whole=("key",))
    for check in checks:
        table.add_row(check.key, check.state, check.pin, megabytes(check.size), (check.sha256 or MISSING)[:16])
    return table


@zoo.command("pin", short_help="Write recorded hashes into a manifest of yours.")
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_model)
@click.option("-o", "--out", type=PATH, required=True, metavar="FILE", help="The manifest to write.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@pass_session
def pin_hashes(session: Session, keys: tuple[str, ...], out: Path, overwrite: bool) -> None:
    """Copy the manifest in force to FILE, with the hashes recorded here: those of KEY..., or all. Use it with --zoo."""
    manifest = session.zoo()
    entries = [manifest.entry(key) for key in keys]
    from dgmn2cli.cli.progress import TerminalObserver  # progress bars take a while to import

    with TerminalObserver(session) as observer:
        pinned = pin(manifest, entries, session.cache_dir(), out, overwrite=overwrite, observer=observer)
    said = f"{len(pinned)} pinned: {', '.join(pinned)}"
    emit(session, {"pinned": pinned, "manifest": out}, lambda: lines(said, str(out)))
