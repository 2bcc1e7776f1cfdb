"""Owns the folder of a run: what lies where in it, and that only one training writes to it."""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from dgmn2cli.config import Config, config_difference, config_to_toml, load_config
from dgmn2cli.distributed.group import Group as Team
from dgmn2cli.errors import ResourceError
from dgmn2cli.evaluate.report import versions
from dgmn2cli.files import atomic_write, local_write_errors, open_in_place, to_json
from dgmn2cli.report.charts import training_curves
from dgmn2cli.runtime import describe_device
from dgmn2cli.training.runlog import read_log
from dgmn2cli.training.state import Shelf


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration: the run can be repeated from it."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        """The machine, the versions and the number of processes."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """One line per step and evaluation; the same for interrupted and unbroken runs."""
        return self.path / "log.jsonl"

    @property
    def events(self) -> Path:
        """What depends on the clock: starts, stops, seconds."""
        return self.path / "events.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def curves(self) -> Path:
        """The curves so far."""
        return self.path / "curves.png"

    @property
    def evaluation(self) -> Path:
        """The final evaluation."""
        return self.path / "evaluation.json"

    def sample(self, iteration: int) -> Path:
        """Sample predictions of the evaluation after `iteration` steps."""
        return self.path / "samples" / f"iter_{iteration:09d}.png"

    def shelf(self, keep: int) -> Shelf:
        """The checkpoints."""
        return Shelf(self.path / "checkpoints", keep)

    def differences(self, config: Config) -> list[str]:
        """The settings in which `config` differs from those the run was started with; none for a new run.

        Where the data lies, how many processes read it and how many checkpoints stay changes no number.

        Raises:
            ConfigError: the run's own configuration is damaged.
        """
        if not self.config.exists():
            return []
        free = ("data.root: ", "data.workers: ", "train.keep: ")
        return [line for line in config_difference(load_config(self.config), config) if not line.startswith(free)]

    def write_start(self, config: Config, team: Team, backend: str, extra: Mapping[str, object]) -> None:
        """Writes configuration and environment; a former, different configuration stays beside the new one.

        Raises:
            ResourceError: a file cannot be written.
        """
        if self.differences(config):
            atomic_write(self.path / "config.previous.toml", self.config.read_bytes())
        atomic_write(self.config, config_to_toml(config))
        environment = {
            **versions(),
            "machine": platform.node(),
            "device": str(team.device),
            "device_name": describe_device(team.device),
            "processes": team.world,
            "threads": torch.get_num_threads(),
            "op_backend": backend,
            "command": sys.argv,
            **extra,
        }
        atomic_write(self.environment, to_json(environment) + "\n")

    def draw_curves(self, title: str) -> None:
        """Draws the curves from the log.

        Raises:
            ResourceError: the image cannot be written.
        """
        training_curves(read_log(self.log), self.curves, title)


class FolderLock:
    """The right to write to a run folder, as a context manager; a killed holder loses it at once.

    A record lock: data workers forked by the training do not inherit it and cannot keep it from beyond the grave.

    Raises:
        ResourceError: another process has it, the folder cannot be written, or the lock's name leads elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"

    def __enter__(self) -> FolderLock:
        with local_write_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = open_in_place(self._path, os.O_RDWR)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 200).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise ResourceError(
                "another training writes to this folder",
                where=self._path.parent,
                why=holder or "it is locked",
                hint="Wait for it, stop it, or choose another --out.",
            ) from error
        with local_write_errors(self._path):
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {platform.node()}, {time.ctime()}\n".encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            os.close(self._descriptor)  # the file stays: removing it would let two holders have two files
