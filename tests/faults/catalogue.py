"""Owns the list of all kinds of faults."""

from __future__ import annotations

from faults import commands, disks, downloads, hostile_pickles, images, models, surroundings, texts
from faults.verdicts import Kind

KINDS: tuple[Kind, ...] = (
    *models.KINDS, *hostile_pickles.KINDS, *images.KINDS, *texts.KINDS, *downloads.KINDS,
    *commands.KINDS, *surroundings.KINDS, *disks.KINDS,
)  # fmt: skip


def kind_named(name: str) -> Kind:
    """The kind of that name."""
    return next(kind for kind in KINDS if kind.name == name)
