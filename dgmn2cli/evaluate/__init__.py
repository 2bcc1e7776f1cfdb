"""The evaluation of a network over a data set: counted exactly, on one process or many, continued if killed.

The room is callable: `dgmn2cli.evaluate(segmenter, "data/cityscapes")`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dgmn2cli.errors import require_count
from dgmn2cli.evaluate.engine import Counted
from dgmn2cli.evaluate.report import DataInfo, EvalReport
from dgmn2cli.evaluate.together import evaluate
from dgmn2cli.inference.plan import Protocol, Settings
from dgmn2cli.observer import Observer, Silent

if TYPE_CHECKING:
    from dgmn2cli.inference.segmenter import Segmenter

__all__ = ["Counted", "DataInfo", "EvalReport", "Protocol", "Settings", "evaluate"]


class _Room(ModuleType):
    def __call__(
        self,
        segmenter: Segmenter,
        root: str | Path = "data/cityscapes",
        split: str = "val",
        *,
        settings: Settings | None = None,
        dataset: str = "",
        limit: int | None = None,
        workers: int = 2,
        observer: Observer | None = None,
    ) -> EvalReport:
        """Evaluates a network over the data set in a folder, as `dgmn2 eval` does, on this process.

        Args:
            segmenter: what `dgmn2cli.load` gave.
            root: the data set: in the layout of Cityscapes, with a dataset.toml, in that of `dataset`, or as the
                network's configuration file describes it.
            split: which part of it.
            settings: the test procedure, such as `Settings(ms_flip=True)`; the configuration's if None.
            dataset: a known layout, see `dgmn2 data presets`.
            limit: evaluate only the first images.
            workers: threads that read ahead.
            observer: told of progress; each `Counted` image is a result.

        Raises:
            DataError: there is no data set, or it has faults; all are named.
            ConfigError: impossible settings, or the data set has other classes than the network.
            NonFiniteError: the network gave NaN or infinity.
        """
        from dgmn2cli.evaluate.request import EvalRequest
        from dgmn2cli.evaluate.run import run_loaded

        require_count("workers", workers, 1024)
        if limit is not None:
            require_count("limit", limit, sys.maxsize)
        settings = settings or Settings()
        request = EvalRequest(Path(root), split, settings=settings, dataset=dataset, limit=limit, workers=workers)
        return run_loaded(request, segmenter, observer or Silent())


sys.modules[__name__].__class__ = _Room
