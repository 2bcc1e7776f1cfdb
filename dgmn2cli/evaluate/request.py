"""Owns what an `eval` run is asked for, and all that is checked before a network is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol as Interface

from dgmn2cli.config import DataConfig, InferenceConfig
from dgmn2cli.data.check import check_dataset, require_sound
from dgmn2cli.data.configured import open_configured
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.distributed.group import devices_for
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.evaluate.collective import torchrun_place
from dgmn2cli.evaluate.engine import PredictionFolder, Watch, first
from dgmn2cli.evaluate.official import require_official
from dgmn2cli.evaluate.published import TOLERANCE
from dgmn2cli.evaluate.report import DataInfo, describe_data, protocol_in_force
from dgmn2cli.evaluate.subject import Subject
from dgmn2cli.evaluate.tally import EVERY
from dgmn2cli.files import check_file, check_folder, hash_file
from dgmn2cli.inference.plan import Settings


@dataclass(frozen=True)
class EvalRequest:
    """What the user asked for.

    Attributes:
        root, split: the data set.
        described: what a configuration says about it; by default nothing but what lies in `root`.
        settings: the test procedure.
        limit: evaluate only the first pictures.
        device, gpus: where; one process on `device`, or `gpus` processes on as many GPUs (or on the CPU).
        workers: threads that read ahead, for each process.
        threads: CPU threads; divided among the processes. None: torch's.
        report: the JSON report; its journal lies beside it while the run lasts.
        resume: go on from that journal.
        save_preds: keep predictions in this folder.
        official: ask cityscapesScripts, too.
        tolerance: percent of mean IoU that may lie between the measured and the published figure.
        journal_every: seconds between two journal entries.
    """

    root: Path
    split: str = "val"
    described: DataConfig = field(default_factory=DataConfig)
    settings: Settings = field(default_factory=Settings)
    limit: int | None = None
    device: str = "auto"
    gpus: int = 1
    workers: int = 2
    threads: int | None = None
    report: Path | None = None
    resume: bool = False
    save_preds: Path | None = None
    official: bool = False
    tolerance: float = TOLERANCE
    journal_every: float = EVERY


class Stage(Interface):
    """Whoever wants to see a run: told what begins, and asked for something to be told how far it is."""

    def checking(self, pictures: int) -> Callable[[], object]:
        """The data check begins; the result is called after each picture."""

    def evaluating(self, model: str, pictures: int, done: int) -> Watch:
        """The evaluation of one model begins, `done` of its pictures taken over from an interrupted run."""


@dataclass(frozen=True, eq=False)
class EvalData:
    """The pictures to evaluate, checked."""

    data: SegmentationSet
    info: DataInfo


def _is_json(path: Path) -> bool:
    """Whether the file begins as a report does, or is empty."""
    try:
        with path.open("rb") as file:
            return file.read(1) in (b"{", b"")
    except OSError as error:
        raise ResourceError("cannot read the file", where=path, why=error.strerror or str(error)) from error


def open_data(request: EvalRequest, inferences: Sequence[InferenceConfig]) -> SegmentationSet:
    """The whole split, once everything has been refused that can be without reading a picture or loading a network.

    Args:
        inferences: the test procedures of the networks' configurations.

    Raises:
        ConfigError: impossible settings.
        ResourceError: not enough GPUs; cityscapesScripts is missing; the report or the predictions cannot be written.
        DataError: no data set there, or pictures without labels; all are named.
    """
    devices_for(request.device, request.gpus)
    if request.resume and request.report is None:
        raise ConfigError("--resume needs --report FILE", why="the journal of a run lies beside its report")
    if request.resume and request.official and request.save_preds is None:
        why = "the predictions of the first run are gone"
        raise ConfigError("--resume with --official needs kept predictions", why=why, hint="Add --save-preds DIR.")
    if request.report is not None and request.report.exists() and not request.report.is_file():
        kind = "a folder" if request.report.is_dir() else "a pipe, socket or device"
        why, hint = f"it is {kind}, and a file is wanted", "Name a file with --report."
        raise ConfigError("the report cannot be written", where=request.report, why=why, hint=hint)
    if request.report is not None and request.report.is_file() and not _is_json(request.report):
        why, hint = "another file is there, which is no JSON", "Name a new file, or an earlier report."
        raise ConfigError("the report is not written", where=request.report, why=why, hint=hint)
    if request.report is not None:
        check_file(request.report)
    if request.save_preds is not None:
        check_folder(request.save_preds)
    if torchrun_place() is not None:
        _refuse_under_torchrun(request)
    for inference in inferences:
        protocol_in_force(request.settings, inference)
    whole = open_configured(request.described, request.split, request.root)
    if request.official:
        require_official(whole.kind)
    if request.save_preds is not None:
        PredictionFolder.of(request.save_preds, first(whole, request.limit))
    return whole


def _refuse_under_torchrun(request: EvalRequest) -> None:
    """Raises ConfigError for what only a run that starts its own processes can do."""
    if request.gpus > 1:
        raise ConfigError("--gpus within torchrun", why="torchrun has started the processes", hint="Leave out --gpus.")
    if request.resume:
        raise ConfigError("--resume within torchrun", why="only --gpus keeps a journal", hint="Use --gpus N.")
    if request.official and request.save_preds is None:
        why = "each process has only its own predictions"
        raise ConfigError("--official within torchrun", why=why, hint="Add --save-preds DIR, a folder that all see.")


def prepare(request: EvalRequest, subjects: Sequence[Subject], stage: Stage) -> EvalData:
    """The pictures, each read once and found sound.

    Raises:
        ConfigError, ResourceError: as `open_data`.
        DataError: the data set has faults; all are named.
    """
    whole = open_data(request, [subject.inference for subject in subjects])
    data = first(whole, request.limit)
    step, workers = stage.checking(len(data)), max(1, request.workers)
    report = check_dataset(data, workers=workers, max_pixels=request.settings.max_pixels, step=step)
    require_sound(report)
    info = replace(describe_data(data, len(whole)), sizes=report.sizes, sha256=fingerprint(data, workers))
    return EvalData(data, info)


def fingerprint(data: SegmentationSet, workers: int = 1) -> str:
    """SHA-256 over the names and contents of all pictures and labels, in order; not over where they lie.

    Raises:
        ResourceError: a file is gone.
    """
    files = [path for pair in data.pairs for path in (pair.image, pair.label) if path is not None]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        hashes = list(pool.map(hash_file, files))
    names = [pair.name for pair in data.pairs]
    return hashlib.sha256(json.dumps([names, hashes]).encode()).hexdigest()
