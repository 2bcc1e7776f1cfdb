"""How long a training still takes: its steps, and the evaluations between them."""

from __future__ import annotations

import statistics
import time
from collections import deque

from dgmn2cli.config import Config
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import image_header
from dgmn2cli.evaluate import Settings
from dgmn2cli.inference.plan import Plan, resolve_settings

FORWARD = 0.3  # time of an evaluation, as a share of what a training step on as many pixels takes
RECENT = 50  # steps by which the next ones are judged


def evaluation_in_steps(config: Config, data: SegmentationSet, processes: int) -> float:
    """How many training steps take as long as an evaluation on `data`, by the pixels that go through the network.

    The first image stands for all of them.

    Raises:
        DataError: it cannot be read.
    """
    header = image_header(data.pairs[0].image)
    plan = Plan.of(resolve_settings(Settings(), config.inference), (header.height, header.width))
    height, width = plan.largest_window
    step = config.train.batch_size * config.train.accumulate * config.augment.crop**2 * processes
    return FORWARD * len(data) * plan.windows * height * width / step


def evaluations_left(config: Config, iteration: int) -> int:
    """How many evaluations are due after the steps that follow `iteration`; the last one is at the end."""
    train = config.train
    every = train.val_every or train.iters
    return 0 if iteration >= train.iters else -(-train.iters // every) - iteration // every


class Forecast:
    """The time that a training still takes, by the steps and evaluations that were timed.

    Args:
        config: the configuration.
        evaluation_in_steps: how long an evaluation is expected to take, before one was timed.
    """

    def __init__(self, config: Config, evaluation_in_steps: float) -> None:
        self._config, self._expected = config, evaluation_in_steps
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._evaluation: float | None = None
        self._since = 0.0

    def begin(self) -> None:
        """A step or an evaluation begins."""
        self._since = time.monotonic()

    def step(self) -> None:
        """A step is done, and the next one begins."""
        now = time.monotonic()
        self._steps.append(now - self._since)
        self._since = now

    def evaluated(self) -> None:
        """An evaluation is done."""
        self._evaluation = time.monotonic() - self._since

    def seconds_left(self, iteration: int, *, due: bool) -> float:
        """Seconds until the end, after so many steps.

        Args:
            due: whether an evaluation of the last step is still to come.
        """
        step = statistics.median(self._steps)  # the first one warms up, and a busy machine has a few slow ones
        evaluation = self._expected * step if self._evaluation is None else self._evaluation
        evaluations = evaluations_left(self._config, iteration) + due
        return (self._config.train.iters - iteration) * step + evaluations * evaluation
