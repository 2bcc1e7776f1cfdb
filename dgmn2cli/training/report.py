"""What a training tells its observer in its course, and what it found in the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgmn2cli.notebook import table_html


@dataclass(frozen=True)
class StepResult:
    """One optimiser step."""

    iteration: int  # steps done, this one included
    loss: float  # mean over processes and accumulated batches
    accuracy: float  # percent of all pixels, ignored ones counted as wrong, as published
    lr: float  # the step's learning rate
    names: tuple[str, ...] = ()  # the images this process saw


@dataclass(frozen=True)
class Evaluated:
    """An evaluation after so many steps: mean IoU and pixel accuracy as fractions, and whether it is the best."""

    iteration: int
    miou: float
    accuracy: float
    best: bool


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: mean IoU, a fraction, and the steps done by then."""

    miou: float
    iteration: int


@dataclass(frozen=True)
class TrainReport:
    """The result of a training."""

    model: str  # zoo key or configuration name
    out: Path  # the run folder
    iterations: int  # optimiser steps done
    device: str  # where, in words
    backend: str  # of the op
    processes: int  # how many trained
    effective_batch: int  # images per optimiser step
    lr: float  # learning rate that the fall begins at
    resumed_at: int  # steps an earlier run had done; 0 for a new run
    loss: float | None  # of the last step; None where no step was needed
    # pixel_accuracy, mean_iou, mean_accuracy: of the final evaluation, fractions
    pixel_accuracy: float
    mean_iou: float
    mean_accuracy: float
    best: Best  # the best evaluation
    # checkpoint, best_checkpoint, evaluation: files
    checkpoint: Path
    best_checkpoint: Path
    evaluation: Path
    seconds: float  # wall time of this run
    notes: tuple[str, ...] = ()  # what was said on the way that matters for the numbers

    def _repr_html_(self) -> str:
        shares = {"mean IoU": self.mean_iou, "pixel accuracy": self.pixel_accuracy, "mean accuracy": self.mean_accuracy}
        shares[f"best mean IoU, after {self.best.iteration} steps"] = self.best.miou
        rows = [(name, f"{100 * value:.2f} %") for name, value in shares.items()]
        title = f"{self.model}: {self.iterations} steps in {self.seconds:.0f} s, run folder {self.out}"
        return table_html(title, ("final evaluation", "value"), rows)
