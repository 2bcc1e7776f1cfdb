"""Where zoo.json, configs/ and examples/ are: beside the package in a checkout, inside an installed copy."""

from __future__ import annotations

from pathlib import Path

from dgmn2cli.errors import ResourceError

PHOTOGRAPH_CREDIT = "The Summer Palace in Beijing. Photograph: Daniel Büchele, CC BY 2.0 (creativecommons.org)"
_PACKAGE = Path(__file__).resolve().parent


def _found(name: str) -> Path:
    for root in (_PACKAGE / "_resources", _PACKAGE.parent):
        if (root / "zoo.json").is_file() and (root / name).exists():
            return root / name
    why, hint = f"{name} is missing", "Reinstall dgmn2cli."
    raise ResourceError("the installed package is incomplete", where=_PACKAGE, why=why, hint=hint)


def zoo_path() -> Path:
    """The path of the zoo manifest that came with the package; a ResourceError where the installation lacks it."""
    return _found("zoo.json")


def config_dir() -> Path:
    """The folder of the 16 published configurations and their recipes; a ResourceError where it is missing."""
    return _found("configs")


def preset_dir() -> Path:
    """The folder of the descriptions of known data sets, which is inside the package."""
    return _PACKAGE / "data" / "presets"


def example_photograph() -> Path:
    """A photograph under a free licence that came with the package; `PHOTOGRAPH_CREDIT` must stand beside it.

    Raises:
        ResourceError: the installation lacks it.
    """
    return _found("examples/summer_palace.jpg")
