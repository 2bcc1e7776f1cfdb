"""`dgmn2 config`: what can be set, what a name resolves to, and what is wrong in a file."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from dgmn2cli.cli.options import NAME, PATH, Session, complete_model, pass_session
from dgmn2cli.cli.render import emit, lines, make_table, notice
from dgmn2cli.errors import ConfigError

SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting: optim.lr=5e-5.")


@click.group(epilog="Example: dgmn2 config show setr_pup-tiny --set optim.lr=5e-5 > mine.toml")
def config() -> None:
    """List all settings, show a resolved configuration, check a file."""


@config.command("list", short_help="Every setting with its type, range, default and meaning.")
@click.argument("pattern", required=False, default="", metavar="[PATTERN]")
@pass_session
def list_settings(session: Session, pattern: str) -> None:
    """Every setting, or those whose key matches PATTERN (`optim`, `*.scale`), with type, range, default and meaning.

    With --json also the JSON schema that a configuration file (as JSON) fits.
    """
    from dgmn2cli.config import config_schema, settings, to_toml

    wanted = pattern.lower() if any(c in pattern for c in "*?[") else f"*{pattern.lower()}*"
    found = [setting for setting in settings() if fnmatch.fnmatchcase(setting.key, wanted)]
    if not found:
        hint = "`dgmn2 config list` without a pattern shows all."
        raise ConfigError("no setting matches the pattern", where=pattern, hint=hint)
    table = make_table("setting", "default", "wanted", "meaning", whole=("setting",))
    for setting in found:
        table.add_row(setting.key, to_toml(setting.default), setting.wanted, setting.help)
    emit(session, {"settings": found, "schema": config_schema()}, lambda: table)


@config.command(short_help="A resolved configuration as TOML.")
@click.argument("name", type=NAME, metavar="NAME", shell_complete=complete_model)
@SET
@pass_session
def show(session: Session, name: str, overrides: tuple[str, ...]) -> None:
    """The complete configuration behind NAME: a zoo key, a published configuration's name, or a configuration file.

    What is printed can be saved as a .toml file and used in its place.
    """
    from dgmn2cli.config import config_to_toml, is_path, load_config

    found = load_config(Path(name) if is_path(name) else session.zoo().find(name).config, overrides)
    emit(session, found, lambda: lines(*config_to_toml(found).splitlines()))


@contextmanager
def _listed_faults(session: Session, file: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        faults = error.faults or (error.why,)
        emit(session, {"file": str(file), "faults": faults}, lambda: lines(*faults))
        why = f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'}, listed above"
        raise ConfigError("the configuration is wrong", where=file, why=why, hint=error.hint) from error


@config.command(short_help="All faults of a configuration file.")
@click.argument("file", type=PATH, metavar="FILE")
@SET
@pass_session
def check(session: Session, file: Path, overrides: tuple[str, ...]) -> None:
    """Check FILE; all faults are listed, and with any the exit code is 2.

    FILE is a native .toml, an mmcv-style .py, or the description of a data set (`dgmn2 data template`).
    """
    from dgmn2cli.config import config_difference, load_config, published_names
    from dgmn2cli.data.folder import is_description, load_description

    if not overrides and is_description(file):
        with _listed_faults(session, file):
            said = load_description(file)
        answer = {"file": str(file), "faults": [], "classes": said.classes, "splits": said.splits}
        emit(session, answer, lambda: f"{file}: no faults; it describes a data set of {len(said.classes)} classes")
        return
    with _listed_faults(session, file):
        found = load_config(file, overrides)
    name = f"{found.model.head}_dgmn2_{found.model.backbone}_"
    published = next(known for known in published_names() if known.startswith(name))
    changed = config_difference(load_config(published), found)
    report = {"file": str(file), "faults": [], "notes": found.notes, "published": published, "differences": changed}
    emit(
        session, report, lambda: lines(f"{file}: no faults; {len(changed)} settings differ from {published}", *changed)
    )
    for note in found.notes:
        notice(session, f"Note: {note}")
