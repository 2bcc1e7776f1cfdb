"""The list of all kinds of faults."""

from __future__ import annotations

import random
from pathlib import Path

from faults import (
    commands,
    deaths,
    disks,
    downloads,
    forms,
    hostile_pickles,
    images,
    models,
    networks,
    operators,
    surroundings,
    texts,
    trees,
)
from faults.verdicts import Faults, Kind

KINDS: tuple[Kind, ...] = (
    *models.KINDS, *forms.KINDS, *hostile_pickles.KINDS, *images.KINDS, *trees.KINDS, *texts.KINDS, *downloads.KINDS,
    *operators.KINDS, *deaths.KINDS, *commands.KINDS, *surroundings.KINDS, *disks.KINDS, *networks.KINDS,
)  # fmt: skip


FORKING = tuple(kind for kind in KINDS if kind.forks)


def _some_of_each(rng: random.Random, folder: Path, count: int) -> Faults:
    for kind in FORKING:
        yield from kind.faults(rng, folder, kind.short)


SHORT = Kind(
    "command line, some of each", _some_of_each, 0, sum(kind.short for kind in FORKING), patience=300, forks=True
)  # in one process, whose start takes longer than most faults


def kind_named(name: str) -> Kind:
    """The kind of that name."""
    return next(kind for kind in (*KINDS, SHORT) if kind.name == name)
