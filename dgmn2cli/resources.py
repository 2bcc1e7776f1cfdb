"""Owns where zoo.json and configs/ are: beside the package in a checkout, inside it in an installed copy."""

from __future__ import annotations

from pathlib import Path

from dgmn2cli.errors import ResourceError

_PACKAGE = Path(__file__).resolve().parent


def _root() -> Path:
    for root in (_PACKAGE / "_resources", _PACKAGE.parent):
        if (root / "zoo.json").is_file() and (root / "configs").is_dir():
            return root
    raise ResourceError(
        "the installed package is incomplete",
        where=_PACKAGE,
        why="zoo.json and configs/ are missing",
        hint="Reinstall dgmn2cli.",
    )


def zoo_path() -> Path:
    """The path of the zoo manifest that came with the package.

    Raises:
        ResourceError: the installation lacks it.
    """
    return _root() / "zoo.json"


def config_dir() -> Path:
    """The folder of the 16 published configurations and their recipes.

    Raises:
        ResourceError: the installation lacks it.
    """
    return _root() / "configs"
