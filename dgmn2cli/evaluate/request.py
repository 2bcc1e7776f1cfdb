"""What an `eval` run is asked for, and all that is checked before a network is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dgmn2cli.config import DataConfig
from dgmn2cli.config.schema import InferenceProcedure
from dgmn2cli.data.catalog import open_configured
from dgmn2cli.data.check import check_dataset, fingerprint, require_sound
from dgmn2cli.data.corruption import Corruption
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.preset import open_preset
from dgmn2cli.distributed.group import require_devices
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.evaluate.journal import EVERY
from dgmn2cli.evaluate.official import require_official
from dgmn2cli.evaluate.predictions import PredictionFolder, find_predictions
from dgmn2cli.evaluate.published import TOLERANCE
from dgmn2cli.evaluate.report import DataInfo
from dgmn2cli.evaluate.together import first
from dgmn2cli.files import absence, check_file, check_folder, open_regular
from dgmn2cli.inference.plan import Settings, resolve_settings
from dgmn2cli.observer import Observer
from dgmn2cli.zoo.cache import checks_dir


@dataclass(frozen=True)
class EvalRequest:
    """What the user asked for."""

    # root, split: the data set
    root: Path
    split: str = "val"
    # what a configuration says about it; by default nothing but what lies in `root`
    described: DataConfig = field(default_factory=DataConfig)
    settings: Settings = field(default_factory=Settings)  # the test procedure
    limit: int | None = None  # evaluate only the first images
    # device, gpus: where; one process on `device`, or `gpus` processes on as many GPUs (or on the CPU)
    device: str = "auto"
    gpus: int = 1
    workers: int = 2  # threads that read ahead, for each process
    threads: int | None = None  # CPU threads of each process; None: torch's, divided among those started here
    report: Path | None = None  # the JSON report; its journal lies beside it while the run lasts
    resume: bool = False  # go on from that journal
    save_preds: Path | None = None  # keep predictions in this folder
    official: bool = False  # ask cityscapesScripts, too
    tolerance: float = TOLERANCE  # percent of mean IoU that may lie between the measured and the published figure
    compiled: bool = False  # how the networks are loaded; the journal's identity has it
    # the cache folder, where published hashes and checks of data are recorded; the default one if None
    cache: Path | None = None
    journal_every: float = EVERY  # seconds between two journal entries
    analysis: bool = True  # look at boundaries, calibration, instances and crops, too
    predictions: Path | None = None  # a folder of predictions that are evaluated in place of a network's
    html: Path | None = None  # write the page of the report here
    csv: Path | None = None  # write the tables of the report into this folder
    command: str = ""  # as typed, for the report
    dataset: str = ""
    corruption: Corruption | None = None


def open_data(request: EvalRequest, inferences: Sequence[InferenceProcedure]) -> SegmentationSet:
    """The whole split, once everything has been refused that can be without reading an image or loading a network.

    Args:
        inferences: the test procedures of the networks' configurations.

    Raises:
        ConfigError: impossible settings.
        ResourceError: not enough GPUs; cityscapesScripts is missing; the report or the predictions cannot be written.
        DataError: no data set there, or images without labels; all are named.
    """
    require_devices(request.device, request.gpus)
    if request.resume and request.report is None:
        raise ConfigError("--resume needs --report FILE", why="the journal of a run lies beside its report")
    if request.resume and request.official and request.save_preds is None:
        why = "the predictions of the first run are gone"
        raise ConfigError("--resume with --official needs kept predictions", why=why, hint="Add --save-preds DIR.")
    if request.report is not None:
        _require_replaceable(request.report)
    for file in filter(None, (request.report, request.html)):
        check_file(file)
    for folder in filter(None, (request.save_preds, request.csv)):
        check_folder(folder)
    for inference in inferences:
        resolve_settings(request.settings, inference)
    if request.dataset:
        whole = open_preset(request.dataset, request.root, request.split)
    else:
        whole = open_configured(request.described, request.split, request.root)
    whole = replace(whole, corruption=request.corruption)
    if request.predictions is not None:
        find_predictions(request.predictions, first(whole, request.limit))
    if request.official:
        require_official(whole.kind)
    if request.save_preds is not None:
        PredictionFolder.of(request.save_preds, first(whole, request.limit))
    return whole


def _require_replaceable(report: Path) -> None:
    """Refuses to write the report where something else is than an earlier one."""
    if not os.path.exists(report):  # nor a link that leads nowhere: it is replaced
        return
    what = "the report is not written"
    if not report.is_file():
        raise ConfigError(what, where=report, why=absence(report), hint="Name a file with --report.")
    with open_regular(report, what, unreadable=ResourceError) as file:
        if file.read(1) not in (b"{", b""):
            why, hint = "another file is there, which is no JSON", "Name a new file, or an earlier report."
            raise ConfigError(what, where=report, why=why, hint=hint)


def prepare(
    request: EvalRequest, inferences: Sequence[InferenceProcedure], observer: Observer
) -> tuple[SegmentationSet, DataInfo]:
    """The images, each read once and found sound.

    Raises:
        ConfigError, ResourceError: as `open_data`.
        DataError: the data set has faults; all are named.
    """
    whole = open_data(request, inferences)
    data, memory, settings = first(whole, request.limit), checks_dir(request.cache), request.settings
    workers, limit = 1 if settings.max_memory else max(1, request.workers), settings.max_pixels
    report = require_sound(check_dataset(data, workers=workers, max_pixels=limit, observer=observer, memory=memory))
    for note in report.notes:
        observer.note(f"{data.split}: {note}")
    about = DataInfo.of_set(data, len(whole))
    return data, replace(about, sizes=report.sizes, sha256=fingerprint(data, workers, memory))
