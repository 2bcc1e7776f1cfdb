"""Owns what TensorBoard is told, where it is installed."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from dgmn2cli.training.report import StepReport

MISSING = "TensorBoard is not installed, so no files are written for it; `pip install 'dgmn2cli[train]'` brings it."


class Board:
    """Curves for TensorBoard; does nothing where that is not installed.

    Args:
        folder: where its files go; None: nowhere.
        start: steps done; later ones of an earlier, interrupted run are hidden.

    Attributes:
        missing: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path | None, start: int) -> None:
        self._writer: Any = None
        self.missing = False
        if folder is None:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its own dependencies' deprecations
                from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.missing = True
            return
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def step(self, step: StepReport) -> None:
        """Adds a step."""
        if self._writer is not None:
            for name, value in (("loss", step.loss), ("accuracy", step.accuracy), ("learning rate", step.lr)):
                self._writer.add_scalar(f"train/{name}", value, step.iteration)

    def evaluation(self, iteration: int, figures: dict[str, float]) -> None:
        """Adds an evaluation."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"val/{name}", value, iteration)
            self._writer.flush()
