"""Training from Python: what `dgmn2 train` does, by one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dgmn2cli.errors import require_count
from dgmn2cli.inference.load import resolve
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.training.report import TrainReport
from dgmn2cli.training.request import RESUME_NEWEST, TrainRequest, configuration_of
from dgmn2cli.training.run import train as run
from dgmn2cli.zoo import load_zoo


def train(
    model: str | Path | None = None,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    resume: bool | str | Path = False,
    force: bool = False,
    device: str = "auto",
    backend: str = "auto",
    processes: int = 1,
    threads: int | None = None,
    cache: str | Path | None = None,
    observer: Observer | None = None,
) -> TrainReport:
    """Trains a network as `dgmn2 train` does: the same configuration, checks, run folder and bits.

    Ctrl-C saves the state first, and interrupts then. The weights are files: `load(report.out / "config.toml",
    report.best_checkpoint)`. PyTorch's generators are seeded, and its threads set where they are given.

    Args:
        model: zoo key, published configuration's name, or configuration file; None: a resumed run's own, else the
            zoo's default.
        data: the data set's folder; the configuration's if None.
        out: the run folder; `runs/NAME` if None.
        settings: values by dotted key, such as `{"train.iters": 2000, "train.init": "scratch"}`.
        resume: go on with the run in `out`; or the checkpoint to go on from.
        force: resume although settings, data or software differ.
        device, backend: as `load`.
        threads: CPU threads of each process; PyTorch's, divided among them, if None.
        processes: how many train together, one per GPU; a script that starts some needs `if __name__ == "__main__"`.
        cache: where downloaded weights are; the default cache if None.
        observer: told of progress; each `StepResult` and `Evaluated` is a result.

    Raises:
        ConfigError, DataError, ResourceError, IntegrityError: what is wrong before the first step.
        NonFiniteError: the loss is NaN or infinite.
        ResourceError, DistributedError: what ended it; `resume` goes on from the last checkpoint.
    """
    require_count("processes", processes, 64)
    if threads is not None:
        require_count("threads", threads, 1024)
    values, folder = dict(settings or {}), None if out is None else Path(out)
    if data is not None:
        values["data.root"] = os.fspath(data)
    if model is None:
        model = configuration_of(folder) if resume else load_zoo().default
    request = TrainRequest.of(
        resolve(model, values=values),
        folder,
        classes_named="model.num_classes" in values,
        processes=processes,
        device=device,
        backend=backend,
        threads=threads,
        resume=RESUME_NEWEST if resume is True else os.fspath(resume or ""),
        force=force,
        cache=None if cache is None else Path(cache),
    )
    return run(request, observer or Silent())
