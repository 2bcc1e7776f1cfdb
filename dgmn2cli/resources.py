"""Where zoo.json, configs/ and examples/ are: beside the package in a checkout, inside an installed copy."""

from __future__ import annotations

from pathlib import Path

from dgmn2cli.errors import ResourceError

PHOTOGRAPH_CREDIT = "The Summer Palace in Beijing. Photograph: Daniel Büchele, CC BY 2.0 (creativecommons.org)"
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


def preset_dir() -> Path:
    """The folder of the descriptions of known data sets.

    Raises:
        ResourceError: the installation lacks it.
    """
    folder = _PACKAGE / "data" / "presets"
    if not folder.is_dir():
        why = "data/presets is missing"
        raise ResourceError("the installed package is incomplete", where=_PACKAGE, why=why, hint="Reinstall dgmn2cli.")
    return folder


def example_photograph() -> Path:
    """A photograph under a free licence that came with the package; `PHOTOGRAPH_CREDIT` must stand beside it.

    Raises:
        ResourceError: the installation lacks it.
    """
    path = _root() / "examples" / "summer_palace.jpg"
    if not path.is_file():
        raise ResourceError(
            "the example photograph is missing",
            where=path,
            why="the installed package is incomplete",
            hint="Reinstall dgmn2cli, or name a picture.",
        )
    return path
