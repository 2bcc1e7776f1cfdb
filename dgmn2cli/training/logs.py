"""The records of a run: JSON lines of steps and evaluations, of what depends on the clock, curves for TensorBoard, W&B.

Nothing in the log depends on the clock, so that the log of a resumed run equals the log of an unbroken one byte for
byte. What does (seconds, starts and stops) is in the file of events beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from dgmn2cli.config import Config
from dgmn2cli.config.schema import flat
from dgmn2cli.errors import ResourceError
from dgmn2cli.evaluate import EvalReport
from dgmn2cli.files import atomic_write, local_write_errors, open_in_place, open_regular, to_plain
from dgmn2cli.observer import Observer
from dgmn2cli.training.report import StepResult
from dgmn2cli.training.state import TrainState

NO_TENSORBOARD = (
    "TensorBoard is not installed, so no files are written for it; `pip install 'dgmn2cli[train]'` brings it."
)
LOG = "log.jsonl"
WANDB = "wandb"
PROJECT = "dgmn2cli"  # where WANDB_PROJECT names none
MAX_LINE = 1 << 16  # bytes of a log line that is read


class JsonLines:
    """An append-only file of JSON lines whose end can be taken back.

    Args:
        path: the file; created where absent.
        length: bytes that are kept; None: all.

    Attributes:
        lost: bytes that the file is shorter than `length`.

    Raises:
        ResourceError: the file cannot be written, or a link, folder, pipe or device is in its place.
    """

    def __init__(self, path: Path, length: int | None = None) -> None:
        self.path = path
        with local_write_errors(path):
            self._file = os.fdopen(open_in_place(path, os.O_RDWR | os.O_APPEND), "a+b")
            size = self._file.seek(0, os.SEEK_END)
            self.lost = max(0, (length or 0) - size)
            if length is not None and not self.lost:
                self._file.truncate(length)
            self._end_line()

    def _end_line(self) -> None:
        """Ends a line that was cut short, so that the next record stands on its own."""
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; a reader sees it at once.

        Raises:
            ResourceError: the file cannot be written.
        """
        with local_write_errors(self.path):
            self._file.write((json.dumps(to_plain(record), allow_nan=False) + "\n").encode())
            self._file.flush()

    def durable_length(self) -> int:
        """The length in bytes, once all of it is on the disk.

        Raises:
            ResourceError: the file cannot be written.
        """
        with local_write_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Closes the file; every record was handed to the system when it was written."""
        with suppress(OSError):  # of a record that could not be written, which was said then
            self._file.close()


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a log, and how many damaged lines were skipped; a last one cut short by a kill does not count.

    Raises:
        ResourceError, IntegrityError: the file is missing or no plain file.
    """
    records: list[dict[str, Any]] = []
    damaged = 0
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE):
            record = _record(line)
            if record is not None:
                records.append(record)
            elif line.endswith(b"\n") or len(line) == MAX_LINE:
                damaged += 1
    return records, damaged


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's record, if it is one of a step or of an evaluation."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not line.endswith(b"\n") or type(found.get("iter")) is not int:
        return None
    numbers = ("miou",) if "miou" in found else ("loss", "acc", "lr")
    fit = all(found.get(name, "") is None or type(found.get(name)) in (int, float) for name in numbers)
    return found if fit else None


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


class RunLogs:
    """All records of a run that is under way, as a context manager; the log begins where it was in a saved state."""

    def __init__(self, folder: Path, config: Config, state: TrainState | None, observer: Observer) -> None:
        start, length = (state.iteration, state.log_bytes) if state else (0, 0)
        self._observer, self._loggers = observer, list[TensorBoard | WeightsAndBiases]()
        with ExitStack() as stack:
            self.log = stack.enter_context(closing(JsonLines(folder / LOG, length)))
            self.events = stack.enter_context(closing(JsonLines(folder / "events.jsonl")))
            self._stack = stack.pop_all()
        if lost := self.log.lost:
            observer.note(f"The log is {lost} bytes shorter than the checkpoint says; it goes on where it ends.")
        self._open(lambda: TensorBoard(folder / "tensorboard", start), TensorBoard.name)
        if config.train.logger == WANDB:
            self._open(lambda: WeightsAndBiases(folder, config), WeightsAndBiases.name)
        self.event("started", start)

    def _open(self, make: Callable[[], TensorBoard | WeightsAndBiases], name: str) -> None:
        try:
            self._loggers.append(make())
        except (ImportError, OSError, ValueError) as error:
            missing = isinstance(error, ImportError) and name == TensorBoard.name
            self._observer.note(NO_TENSORBOARD if missing else f"{name} gets no figures: {error}")

    def event(self, what: str, iteration: int) -> None:
        """Notes something with the time."""
        self.events.write({"time": time.time(), "event": what, "iter": iteration})

    def step(self, step: StepResult) -> None:
        """Notes a step."""
        self.log.write({"iter": step.iteration, "loss": step.loss, "acc": step.accuracy, "lr": step.lr})
        figures = {"loss": step.loss, "accuracy": step.accuracy, "learning rate": step.lr}
        self._show("train", figures, step.iteration)

    def evaluation(self, iteration: int, report: EvalReport, best: bool) -> None:
        """Notes an evaluation."""
        scores = report.scores
        figures = {"miou": scores.mean_iou, "aacc": scores.pixel_accuracy, "macc": scores.mean_accuracy}
        self.log.write({"iter": iteration, **figures, "best": best})
        self._show("val", {**figures, **{f"IoU {entry.name}": entry.iou for entry in scores.classes}}, iteration)

    def _show(self, group: str, figures: dict[str, float], iteration: int) -> None:
        """Gives curves their next points; they are only for looking at, so a full disk does not end the run."""
        points = {f"{group}/{name}": value for name, value in figures.items()}
        for logger in tuple(self._loggers):
            try:
                logger.scalars(points, iteration)
            except OSError as error:
                self._loggers.remove(logger)
                self._observer.note(f"{logger.name} gets no more figures: {error}")

    def close(self) -> None:
        """Closes all of them."""
        self._stack.close()
        for logger in self._loggers:
            with suppress(OSError):
                logger.close()
