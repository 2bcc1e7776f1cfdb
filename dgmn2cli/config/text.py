"""The text of a configuration: reading it, in whichever language, and writing it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgmn2cli.config.schema import SECTIONS, Config, flat
from dgmn2cli.errors import ConfigError
from dgmn2cli.files import read_text

MAX_BYTES = 1_000_000


def read_config_text(path: Path) -> str:
    """The text of a configuration file."""
    hint = "Give the path of a .toml or .py file, or a name that `dgmn2 zoo list` shows."
    try:
        return read_text(path, MAX_BYTES, "cannot read the configuration", kind=ConfigError, hint=hint)
    except ConfigError as error:
        error.faults = (f"{path}: {error.why}",)
        raise


def config_to_toml(config: Config) -> str:
    """The complete configuration as a native file: every setting, no base; `load_config` reads it back equal."""
    lines = [f"name = {to_toml(config.name)}"]
    if config.notes:
        lines.append(f"notes = {to_toml(config.notes)}")
    for section in SECTIONS:
        values = asdict(getattr(config, section))
        lines += ["", f"[{section}]", *(f"{name} = {to_toml(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def config_difference(a: Config, b: Config) -> list[str]:
    """The settings in which two configurations differ, `optim.lr: 0.0001 -> 5e-05`; names and notes do not count."""
    one, other = flat(a), flat(b)
    return [f"{key}: {to_toml(one[key])} -> {to_toml(other[key])}" for key in one if one[key] != other[key]]


def to_toml(value: Any) -> str:
    """A setting's value as TOML, whose spelling of numbers, printable texts and lists of them is JSON's."""
    return json.dumps(value, ensure_ascii=False)
