"""What a training is asked for, and what follows from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgmn2cli.config import Config
from dgmn2cli.training.folder import RunFolder

RESUME_NEWEST = "auto"


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

    @property
    def folder(self) -> RunFolder:
        """Where the run keeps what."""
        return RunFolder(self.out)


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
