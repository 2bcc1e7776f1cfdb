"""Owns `dgmn2 zoo verify` and `dgmn2 zoo pin`: the files behind the zoo's entries."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import RenderableType
from rich.text import Text

from dgmn2cli.cli.options import PATH, Session, complete_model, pass_session
from dgmn2cli.cli.render import MISSING, emit, make_table, megabytes, progress
from dgmn2cli.errors import CheckFailed, printable
from dgmn2cli.zoo.upkeep import FileCheck, pin, verify_cache


@click.command("verify", short_help="Hash the files on disk again.")
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_model)
@click.option("--all", "everything", is_flag=True, help="Every entry; those not on disk are shown, too.")
@pass_session
def verify_files(session: Session, keys: tuple[str, ...], everything: bool) -> None:
    """Hash files of the cache again: those of KEY..., or all that are there. Exit 1 if one is damaged or missing."""
    manifest = session.zoo()
    entries = [manifest.entry(key) for key in keys] or [*manifest.segmentors, *manifest.backbones]
    with progress(session, "hashing", transfer=True) as advance:
        checks = verify_cache(entries, session.cache_dir(), advance)
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
    table = make_table("key", "state", "hash", "size", "sha256", right=("size",))
    for check in checks:
        table.add_row(check.key, check.state, check.pin, megabytes(check.size), (check.sha256 or MISSING)[:16])
    return table


@click.command("pin", short_help="Write recorded hashes into a manifest of yours.")
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_model)
@click.option("-o", "--out", type=PATH, required=True, metavar="FILE", help="The manifest to write.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@pass_session
def pin_hashes(session: Session, keys: tuple[str, ...], out: Path, overwrite: bool) -> None:
    """Copy the manifest in force to FILE, with the hashes recorded here: those of KEY..., or all. Use it with --zoo."""
    manifest = session.zoo()
    entries = [manifest.entry(key) for key in keys]
    with progress(session, "hashing", transfer=True) as advance:
        pinned = pin(manifest, entries, session.cache_dir(), out, overwrite=overwrite, advance=advance)
    lines = [f"{len(pinned)} pinned: {', '.join(pinned)}", str(out)]
    emit(session, {"pinned": pinned, "manifest": out}, lambda: [Text(printable(line)) for line in lines])
