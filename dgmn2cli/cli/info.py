"""`dgmn2 info`: which model a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from dgmn2cli.cli.options import PATH, Session, pass_session
from dgmn2cli.cli.render import MISSING, emit, record_table
from dgmn2cli.errors import ConfigError, IntegrityError, printable

if TYPE_CHECKING:
    from dgmn2cli.checkpoint.describe import FileInfo, KnownHash
    from dgmn2cli.zoo import AnyEntry, Zoo


@click.command()
@click.argument("file", type=PATH)
@click.option("--config", "config_only", is_flag=True, help="Print the training configuration in FILE, nothing else.")
@pass_session
def info(session: Session, file: Path, config_only: bool) -> None:
    """Say which model FILE holds, whose bytes it has, and what it tells of its training. Nothing in it is executed."""
    from dgmn2cli.checkpoint.describe import config_text, describe
    from dgmn2cli.checkpoint.weights import read_checkpoint

    if config_only:
        text = config_text(read_checkpoint(file))
        if text is None:
            raise ConfigError(
                "no training configuration",
                where=file,
                why="the file holds none",
                hint="`dgmn2 info` without --config shows what it does hold.",
            )
        emit(session, {"config": text}, lambda: text.rstrip("\n"))
        return
    found = describe(file, known_hashes(session.zoo(), session.known_cache()))
    emit(session, found, lambda: _record(found))
    if found.digest == "does not hold":
        hint = "Take an earlier checkpoint of the run."
        raise IntegrityError("the checkpoint is damaged", where=file, why="its own digest does not hold", hint=hint)


def known_hashes(zoo: Zoo, cache: Path | None) -> list[KnownHash]:
    """The manifest's hashes, then those recorded in the cache."""
    from dgmn2cli.zoo.cache import find_record

    entries: list[AnyEntry] = [*zoo.segmentors, *zoo.backbones]
    pinned: list[KnownHash] = [(entry.key, entry.sha256, "pinned") for entry in entries if entry.sha256]
    records = [(entry.key, find_record(entry, cache)) for entry in entries]
    return [*pinned, *((key, record.sha256, "recorded") for key, record in records if record)]


def _record(found: FileInfo) -> Table:
    from dgmn2cli.checkpoint.weights import listed

    file = found.file
    rows = [("model", found.model)]
    rows += [("", line) for line in listed(found.network.differences)]
    rows += [
        ("classes", str(found.network.classes or MISSING)),
        ("tensors", f"{found.tensors:,}, {found.values:,} values, {_counts(found.dtypes)}"),
        ("iteration", f"{found.iteration:,}" if found.iteration is not None else MISSING),
        ("epoch", f"{found.epoch:,}" if found.epoch is not None else MISSING),
        ("file", str(file.path)),
        ("format", file.format + (f", weights under '{file.wrapper}'" if file.wrapper else ", nothing but weights")),
        ("size", f"{file.size:,} bytes"),
        ("sha256", file.sha256),
        ("hash", _hash_words(found)),
        ("optimiser", found.optimizer or "none"),
    ]
    rows += [("note", note) for note in file.notes]
    if found.digest != "none":
        rows.append(("own digest", found.digest))
    if config := found.training_config:
        about = config.summary or f"not understood: {config.fault}"
        rows += [("configuration", f"{config.language}, {config.lines} lines: {about}")]
    rows += [(f"meta {printable(key[:20])}", value) for key, value in found.meta.items()]
    return record_table(rows + [("besides", text) for text in found.others])


def _counts(dtypes: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(dtypes.items(), key=lambda item: -item[1]))


def _hash_words(found: FileInfo) -> str:
    words = {
        "pinned": f"pinned: the manifest's {found.hash_of}",
        "recorded": f"recorded: the {found.hash_of} that was downloaded and verified here",
        "unknown": "unknown: no file of the zoo is known to have it",
    }
    return words[found.hash_state] + (f"; {found.hash_note}" if found.hash_note else "")
