"""Where the figures of a run go to be looked at, beside its own log: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dgmn2cli.config import Config
from dgmn2cli.config.schema import flat
from dgmn2cli.errors import ResourceError
from dgmn2cli.files import atomic_write

WANDB = "wandb"
PROJECT = "dgmn2cli"  # where WANDB_PROJECT names none


class Logger(Protocol):
    """A place for curves; each method raises OSError where it cannot go on."""

    name: str

    def scalars(self, figures: Mapping[str, float], iteration: int) -> None:
        """The values of some curves, `train/loss` and so on, after `iteration` steps."""

    def close(self) -> None:
        """All of it is written."""


class TensorBoard:
    """TensorBoard's files in `folder`; later points than `start` of an earlier, interrupted run are hidden.

    Raises:
        ImportError: it is not installed.
        OSError, ValueError: the files cannot be written.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, start: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own dependencies' deprecations
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def scalars(self, figures: Mapping[str, float], iteration: int) -> None:
        """One point of each curve."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Writes what is still in memory."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its files lie in `folder`/wandb, and leave the machine only with WANDB_MODE=online.

    A resumed run has the same id. The curves are drawn over `iter`, the number of steps.

    Raises:
        OSError: the files cannot be written, or the service refuses.
    """

    name = "Weights & Biases"

    def __init__(self, folder: Path, config: Config) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it would report its own faults over the network
        import wandb

        identity = folder / "wandb" / "run-id"
        if not identity.exists():
            atomic_write(identity, uuid.uuid4().hex[:16])
        self._errors = wandb.Error
        try:
            mode: Any = os.environ.get("WANDB_MODE", "offline")  # wandb says what it wants
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=os.environ.get("WANDB_NAME", config.name),
                id=identity.read_text("utf-8"),
                resume="allow",
                dir=folder,
                mode=mode,
                config=flat(config),
                settings=wandb.Settings(console="off", silent=True),
            )
            self._run.define_metric("*", step_metric="iter")
        except self._errors as error:
            raise OSError(str(error)) from error

    def scalars(self, figures: Mapping[str, float], iteration: int) -> None:
        """One point of each curve."""
        try:
            self._run.log({**figures, "iter": iteration})
        except self._errors as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        """Ends the run; a resumed one opens it again."""
        self._run.finish()


def require_logger(name: str) -> None:
    """Raises ResourceError where the logger called `name` needs a package that is not installed."""
    if name == WANDB and importlib.util.find_spec(WANDB) is None:
        raise ResourceError(
            "Weights & Biases is not installed",
            where="train.logger",
            hint="Install it: pip install 'dgmn2cli[wandb]', or leave out --logger wandb.",
        )
