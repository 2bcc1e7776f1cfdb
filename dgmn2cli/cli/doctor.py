"""`dgmn2 doctor`: whether this machine can work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from dgmn2cli.cli.options import Session, device_option, pass_session
from dgmn2cli.cli.render import emit
from dgmn2cli.errors import ResourceError, printable
from dgmn2cli.zoo import find_cache

if TYPE_CHECKING:
    from dgmn2cli.doctor import Examination

STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


@click.command()
@device_option
@pass_session
def doctor(session: Session, device: str) -> None:
    """Check this machine: Python, libraries, device, op backends, cache. Exit 5 if the device cannot work."""
    from dgmn2cli.doctor import examine

    found = examine(session.zoo(), find_cache(session.cache), device)  # what is wrong with it is a finding
    emit(session, found, lambda: _table(found))
    failed = [finding for finding in found.findings if finding.verdict == "failed"]
    if failed:
        count = f"{len(failed)} of {len(found.findings)} checks failed"
        faults = [f"{finding.name}: {finding.value}" for finding in failed]
        raise ResourceError(count, where=device, hint="This machine cannot work so; see above.", faults=faults)


def _table(found: Examination) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found.findings:
        verdict = Text(finding.verdict, style=STYLES[finding.verdict])
        table.add_row(finding.name, verdict, Text(printable(finding.value)))
    return table
