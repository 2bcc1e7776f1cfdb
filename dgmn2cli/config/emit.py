"""Owns how a configuration leaves the program: as TOML that loads back equal, and as a list of differences."""

from __future__ import annotations

import json
from typing import Any

from dgmn2cli.config.fields import names_of
from dgmn2cli.config.schema import SECTIONS, Config, flat


def config_to_toml(config: Config) -> str:
    """The complete configuration as a native file: every setting, no base; `load_config` reads it back equal."""
    lines = [f"name = {_value(config.name)}"]
    if config.notes:
        lines.append(f"notes = {_value(config.notes)}")
    for section, cls in SECTIONS.items():
        lines += ["", f"[{section}]"]
        values = getattr(config, section)
        lines += [f"{name} = {_value(getattr(values, name))}" for name in names_of(cls)]
    return "\n".join(lines) + "\n"


def config_difference(a: Config, b: Config) -> list[str]:
    """The settings in which two configurations differ, `optim.lr: 0.0001 -> 5e-05`; names and notes do not count."""
    one, other = flat(a), flat(b)
    return [f"{key}: {_value(one[key])} -> {_value(other[key])}" for key in one if one[key] != other[key]]


def _value(value: Any) -> str:
    """A setting's value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # printable text only, whose JSON and TOML spellings agree
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return repr(value)  # the shortest decimal that reads back as the same float
