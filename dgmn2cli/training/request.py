"""What a training is asked for, and what follows from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgmn2cli.config import Config
from dgmn2cli.errors import ConfigError
from dgmn2cli.inference.load import Recipe
from dgmn2cli.training.folder import RunFolder
from dgmn2cli.zoo import short_name

RESUME_NEWEST = "auto"
RUNS = Path("runs")  # of run folders that nobody names


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for; it can be sent to another process."""

    config: Config  # the configuration, overrides applied
    out: Path  # the run folder
    model: str = ""  # zoo key or configuration name, for reports
    adapt_classes: bool = False  # the number of classes may follow the data set (nobody has named one)
    processes: int = 1  # on this machine; 1 under `torchrun`, which starts them itself
    device: str = "auto"  # `auto`, `cpu`, `cuda`, ...
    backend: str = "auto"  # of the op; `auto` on resuming: the run's
    # CPU threads of each process; None: the run's on resuming, else torch's, divided among the processes
    threads: int | None = None
    resume: str = ""  # empty: a new run; `auto`: go on from the newest state; else the checkpoint to go on from
    force: bool = False  # go on although settings differ
    # zoo_file, cache: the manifest and the cache folder; the usual ones if None
    zoo_file: Path | None = None
    cache: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe, out: Path | None, *, classes_named: bool, **others: Any) -> TrainRequest:
        """What is asked for with a model's name.

        Args:
            out: the run folder; the one of the model's name if None.
            classes_named: the number of classes is asked for; else a published model's follows the data set.
            others: further fields.
        """
        name, adapt = short_name(recipe.name), recipe.entry is not None and not classes_named
        return cls(recipe.config, out or RUNS / name, name, adapt_classes=adapt, **others)

    @property
    def folder(self) -> RunFolder:
        """Where the run keeps what."""
        return RunFolder(self.out)


def configuration_of(out: Path | None) -> str:
    """The path of the configuration of the run in `out`, by which it goes on where no model is named.

    Raises:
        ConfigError: no folder is named, or no run is in it.
    """
    if out is None:
        raise ConfigError("--resume needs to know the run", hint="Name its folder with --out, or its model.")
    own = out / "config.toml"
    if not own.is_file():
        hint = "Name the model and the settings to begin one."
        raise ConfigError("there is no run to resume", where=out, why="it has no config.toml", hint=hint)
    return str(own.absolute())


def effective_batch(config: Config, world: int) -> int:
    """Images per optimiser step."""
    return world * config.train.batch_size * config.train.accumulate


def outline(config: Config, world: int, images: int) -> str:
    """Batch, learning rate and length of a training in one line."""
    train, batch = config.train, effective_batch(config, world)
    parts = f"{world} process{'es' * (world != 1)} x {train.batch_size}"
    if train.accumulate > 1:
        parts += f" x {train.accumulate} accumulated"
    if train.recipe_batch not in (0, batch):
        needed, rest = divmod(train.recipe_batch, world * train.batch_size)
        parts += f"; the recipe is made for {train.recipe_batch}" + ("" if rest else f": --accumulate {needed}")
    return (
        f"Effective batch {batch} ({parts}), learning rate {config.optim.lr:g}, "
        f"{train.iters:,} steps: {train.iters * batch / images:.1f} passes over {images:,} images."
    )
