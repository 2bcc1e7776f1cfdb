"""Runs commands and programs as documented in children of one process that has loaded torch already.

Only the published procedures are replaced: by windows and crops of 64 pixels and trainings of two steps, where neither
the command nor a file of the user's says otherwise.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dgmn2cli.evaluate.run
import dgmn2cli.inference.load as load
import dgmn2cli.training.run  # noqa: F401  # loaded once, for all children
from dgmn2cli.config import is_path
from dgmn2cli.inference.load import Recipe

SMALL = {
    "inference.scale": (128, 64),
    "inference.window": 64,
    "inference.stride": 48,
    "augment.scale": (128, 64),
    "augment.crop": 64,
    "train.iters": 2,
    "train.batch_size": 2,
    "data.workers": 0,
}
published = load.resolve


def small(name: str | Path, overrides: Any = (), zoo: Any = None, values: Mapping[str, object] | None = None) -> Recipe:
    return published(name, overrides, zoo, values if is_path(str(name)) else {**SMALL, **(values or {})})


load.resolve = small


def _enter(here: Path, environment: Mapping[str, str], log: Path) -> None:
    os.chdir(here)
    os.environ.update(environment)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def command(arguments: Sequence[str], here: Path, environment: Mapping[str, str], log: Path) -> None:
    """`dgmn2 ARGUMENTS` in the folder `here`; what it says goes to `log`."""
    _enter(here, environment, log)
    sys.argv = ["dgmn2", *arguments]
    from dgmn2cli.__main__ import main

    sys.exit(main())


def script(words: Sequence[str], here: Path, environment: Mapping[str, str], log: Path) -> None:
    """`python FILE ARGUMENT...` in the folder `here`."""
    _enter(here, environment, log)
    sys.argv = [*words]
    sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
    runpy.run_path(words[0], run_name="__main__")


def program(text: str, here: Path, environment: Mapping[str, str], log: Path) -> None:
    """A Python program in the folder `here`."""
    _enter(here, environment, log)
    exec(compile(text, "block", "exec"), {"__name__": "__main__"})
