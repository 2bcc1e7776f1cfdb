"""Reading the text of a configuration, in whichever language."""

from __future__ import annotations

from pathlib import Path

from dgmn2cli.errors import ConfigError
from dgmn2cli.files import read_text

MAX_BYTES = 1_000_000


def read_config_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: absent, not a regular file, over a megabyte, or not UTF-8; `faults` names the file, too.
        ResourceError: the file may not be read.
    """
    hint = "Give the path of a .toml or .py file, or a name that `dgmn2 zoo list` shows."
    try:
        return read_text(path, MAX_BYTES, "cannot read the configuration", kind=ConfigError, hint=hint)
    except ConfigError as error:
        error.faults = (f"{path}: {error.why}",)
        raise
