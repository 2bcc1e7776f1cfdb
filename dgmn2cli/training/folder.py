"""The folder of a run: what lies where in it, and that only one training writes to it."""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from dgmn2cli.config import Config, config_difference, config_to_toml, load_config
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.evaluate.report import versions
from dgmn2cli.files import abandoned, atomic_write, local_write_errors, open_in_place, to_json
from dgmn2cli.runtime import describe_device
from dgmn2cli.training.logs import LOG
from dgmn2cli.training.state import CheckpointStore

FREE = ("data.root: ", "data.workers: ", "train.keep: ", "train.logger: ")  # settings that change no number


class RunFolder:
    """Where a run keeps what.

    Attributes:
        path: the folder.
        config: the resolved configuration: the run can be repeated from it.
        log: one line per step and evaluation; the same for interrupted and unbroken runs.
        curves: the curves so far.
        evaluation, page: the final evaluation, and its page for a browser.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.log = path / "config.toml", path / LOG
        self.curves, self.evaluation = path / "curves.png", path / "evaluation.json"
        self.page = path / "evaluation.html"

    def sample(self, iteration: int) -> Path:
        """Sample predictions of the evaluation after `iteration` steps."""
        return self.path / "samples" / f"iter_{iteration:09d}.png"

    def checkpoints(self, keep: int = 0) -> CheckpointStore:
        """The checkpoints, of which `keep` numbered ones stay (0: all)."""
        return CheckpointStore(self.path / "checkpoints", keep)

    def clear_abandoned(self) -> None:
        """Removes the files that a killed process was writing."""
        for part in self.path.glob("**/.*.part"):
            with abandoned(part) as file, suppress(OSError):
                if file is not None:
                    part.unlink()

    def require_ours(self) -> None:
        """Refuses a folder with somebody's files: ours has a lock or checkpoints, or nothing in it yet.

        Raises:
            ConfigError: it holds other files.
            ResourceError: it cannot be read.
        """
        if os.path.lexists(self.path / "lock") or any(self.checkpoints().folder.glob("*.pth")):
            return
        with local_write_errors(self.path):
            found = sorted(name for name in os.listdir(self.path) if not name.startswith("."))
        if found:
            why = f"{', '.join(found[:3])}{', ...' * (len(found) > 3)} would lie among the run's files"
            hint = "Choose a new or empty folder with --out."
            raise ConfigError("the folder holds other files", where=self.path, why=why, hint=hint)

    def differences(self, config: Config) -> list[str]:
        """The settings in which `config` differs from those the run was started with; none for a new run.

        Raises:
            ConfigError: the run's own configuration is damaged.
        """
        return differences(load_config(self.config), config) if self.config.exists() else []

    def write_start(
        self, config: Config, device: torch.device, environment: Mapping[str, object], extra: Mapping[str, object]
    ) -> None:
        """Writes configuration and environment; a former, different configuration stays beside the new one.

        Raises:
            ResourceError: a file or the folder of the checkpoints cannot be written.
        """
        checkpoints = self.checkpoints().folder
        with local_write_errors(checkpoints):
            checkpoints.mkdir(parents=True, exist_ok=True)
        if self.differences(config):
            atomic_write(self.path / "config.previous.toml", self.config.read_bytes())
        atomic_write(self.config, config_to_toml(config))
        about = {
            **versions(),
            "machine": platform.node(),
            "device_name": describe_device(device),
            **environment,
            "op_backend": environment["backend"],
            "command": sys.argv,
            **extra,
        }
        atomic_write(self.path / "environment.json", to_json(about) + "\n")


def differences(before: Config, after: Config) -> list[str]:
    """The settings that differ, one line each, but those that change no number."""
    return [line for line in config_difference(before, after) if not line.startswith(FREE)]


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """The right to write to a run folder within the block; a killed holder loses it at once.

    A record lock: data workers forked by the training do not inherit it and cannot keep it from beyond the grave.

    Raises:
        ResourceError: another process has it, the folder cannot be written, or the lock's name leads elsewhere.
    """
    path = folder / "lock"
    with local_write_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_in_place(path, os.O_RDWR)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            what, hint = "another training writes to this folder", "Wait for it, stop it, or choose another --out."
            why = file.read(200).decode(errors="replace").strip() or "it is locked"
            raise ResourceError(what, where=folder, why=why, hint=hint) from error
        with local_write_errors(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}, {time.ctime()}\n".encode())
        yield  # the file stays: removing it would let two holders have two files
