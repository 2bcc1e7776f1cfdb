"""The course of a demonstration: draw, train, evaluate twice, segment, show; each by the engine of its command."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dgmn2cli import resources
from dgmn2cli.config import load_config
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import read_image
from dgmn2cli.demo.page import show_scenes, write_page, write_sheet
from dgmn2cli.demo.report import ClassFigures, DemoReport, Figures, StepBegun, StepDone, duration
from dgmn2cli.demo.request import MODEL, PHOTOGRAPH_SCALE, DemoRequest, refuse_folder, write_mark
from dgmn2cli.demo.streets.dataset import make_dataset
from dgmn2cli.errors import DataError
from dgmn2cli.evaluate import EvalReport, Settings
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run as evaluate
from dgmn2cli.files import atomic_write, local_write_errors, to_json
from dgmn2cli.inference.files import Pipeline
from dgmn2cli.inference.load import Recipe
from dgmn2cli.inference.outputs import FolderSink
from dgmn2cli.inference.report import ImageResult
from dgmn2cli.inference.settings import LoadOptions
from dgmn2cli.inference.sources import ImageFile
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.ops import resolve as resolve_backend
from dgmn2cli.runtime import resolve_device, resolve_dtype, set_threads
from dgmn2cli.training.folder import RunFolder, lock_folder
from dgmn2cli.training.forecast import FORWARD
from dgmn2cli.training.plan import plan_training
from dgmn2cli.training.report import TrainReport
from dgmn2cli.training.request import RESUME_NEWEST, TrainRequest
from dgmn2cli.training.run import train

Result = TypeVar("Result")
Found = tuple[Result, str, Path]  # what a step gives, in words, and where it lies
STEPS = 6
SINGLE_SCALE, MS_FLIP = "single_scale", "ms_flip"
KINDS = ("ids", "color", "overlay", "stats")
SYNTH_THREADS = 2
TRAIN_SECONDS = 88.0  # for the steps of a training that is given no number of them; its evaluations come on top
LEAST_STEPS, MOST_STEPS = 120, 400  # however slow or fast they are: fewer teach next to nothing
OTHER_SECONDS = 10.0  # for loading, images and pages


def demo(request: DemoRequest, observer: Observer) -> DemoReport:
    """Draws streets, trains on them, evaluates, segments, and writes a page that shows it all.

    Ctrl-C ends it; what is done stays, and `resume` goes on from there. The observer gets a `StepBegun` and a
    `StepDone` of each step beside what training and evaluations tell.

    Raises:
        ConfigError: an impossible number, or the folder is not free.
        DataError: the photograph cannot be read.
        ResourceError: the device or the backend is not there, another demonstration writes to the folder, the disk is
            full.
    """
    refuse_folder(request)
    config = request.config(request.iters or MOST_STEPS)
    resolve_backend(request.backend, resolve_device(request.device), resolve_dtype(config.train.dtype))
    photograph = request.image or resources.example_photograph()
    read_image(photograph)  # refused now, not after minutes of training
    with lock_folder(request.out):
        if request.overwrite:
            request.folder.clear()
        write_mark(request)
        about = f"{STEPS} steps, a few minutes in all; everything goes to {request.out} (about 300 MB)."
        observer.note(f"{about} Ctrl-C stops it, --resume goes on.")
        return _Demo(request, observer, photograph).run()


class _Demo:
    """One demonstration in a folder that is ours alone."""

    def __init__(self, request: DemoRequest, observer: Observer, photograph: Path) -> None:
        self.request, self.observer, self.photograph = request, observer, photograph
        self.folder, self.config = request.folder, request.config(request.iters or MOST_STEPS)
        self.recipe = Recipe(self.config, None)
        self.began, self.steps, self.resumed = time.monotonic(), list[StepDone](), False

    def run(self) -> DemoReport:
        request, config = self.request, self.config
        set_threads(request.threads)
        count = request.scenes + request.held_out
        size, held_out = f"{request.size[0]}x{request.size[1]}", f"the {request.held_out} held-out scenes"
        length = f"{request.iters} steps" if request.iters else f"{TRAIN_SECONDS:.0f} s of steps"
        steps = f"{length} of {request.batch_size} crops of {request.crop}x{request.crop}"
        self._step(f"Drawing {count} synthetic street scenes of {size} pixels", self._draw)
        trained = self._step(f"Training {MODEL} from fresh weights: {steps}", self._train)
        evaluation = f"Evaluating on {held_out}, "
        single = self._step(evaluation + "single scale", lambda: self._evaluate(trained, SINGLE_SCALE))
        views = f"{len(config.inference.ratios)} scales, each also mirrored (ms+flip)"
        averaged = self._step(evaluation + views, lambda: self._evaluate(trained, MS_FLIP))
        images = self._step("Segmenting a held-out scene and a photograph", lambda: self._segment(trained))
        report = self._report(trained, single, averaged, images)
        self._step("Drawing the contact sheet and the page", lambda: self._show(report))
        report = replace(report, steps=tuple(self.steps), seconds=time.monotonic() - self.began)
        atomic_write(self.folder.report, to_json(report) + "\n")
        return report

    def _step(self, what: str, work: Callable[[], Found[Result]]) -> Result:
        self.observer.result(StepBegun(len(self.steps) + 1, STEPS, what))
        began = time.monotonic()
        try:
            result, found, where = work()
        finally:
            self.observer.end()
        done = StepDone(what, time.monotonic() - began, found, where)
        self.steps.append(done)
        self.observer.result(done)
        return result

    def _draw(self) -> Found[None]:
        request, folder = self.request, self.folder
        about = f"{request.scenes} to train on, {request.held_out} held out, in the layout of Cityscapes"
        if folder.drawn.is_file():
            self.resumed = True
            return None, f"they were there already: {about}", folder.data
        if folder.data.exists():  # interrupted; the same seed draws the same scenes again
            with local_write_errors(folder.data):
                shutil.rmtree(folder.data)
        self.observer.begin("drawing", request.scenes + request.held_out)
        made = make_dataset(
            folder.data,
            train=request.scenes,
            val=request.held_out,
            size=request.size,
            seed=request.seed,
            workers=SYNTH_THREADS,
            step=self.observer.advance,
        )
        atomic_write(folder.drawn, to_json(made) + "\n")
        return None, about, folder.data

    def _train(self) -> Found[TrainReport]:
        request, run = self.request, self.folder.run
        wanted = TrainRequest(
            self.config,
            run,
            MODEL,
            device=request.device,
            backend=request.backend,
            threads=request.threads,
            resume=RESUME_NEWEST if run.exists() else "",
        )
        if request.iters is None:
            iters = self._begun_with() or self._steps_in_time(wanted)
            self.config = request.config(iters)
            self.recipe = Recipe(self.config, None)
        report = train(replace(wanted, config=self.config), self.observer)
        self.resumed = self.resumed or report.resumed_at > 0
        return report, f"checkpoints, log and curves of {report.iterations} steps", run

    def _begun_with(self) -> int:
        """The number of steps of the training that is to go on; 0 for a new one."""
        config = RunFolder(self.folder.run).config
        return load_config(config).train.iters if config.exists() else 0

    def _steps_in_time(self, wanted: TrainRequest) -> int:
        """As many steps as the time allows, by what the first ones take, and no fewer than teach something."""
        seconds = plan_training(replace(wanted, resume=""), self.observer).seconds_per_step
        steps = min(max(int(TRAIN_SECONDS / seconds), LEAST_STEPS), MOST_STEPS)
        self.observer.note(
            f"A step takes {seconds:.2f} s here: {steps} of them take about {duration(steps * seconds)}, "
            f"and the page will be there in about {duration(self._seconds_left(steps, seconds))}."
        )
        return steps

    def _seconds_left(self, steps: int, seconds: float) -> float:
        """Until the page is there, before a training of `steps` that take `seconds` each."""
        request = self.request
        pixels = request.held_out * request.size[0] * request.size[1] / (request.batch_size * request.crop**2)
        views = request.evaluations + 1 + 2 * sum(ratio**2 for ratio in request.ratios)
        return (steps + FORWARD * pixels * views) * seconds + OTHER_SECONDS

    def _evaluate(self, trained: TrainReport, name: str) -> Found[EvalReport]:
        request, folder = self.request, self.folder
        options = LoadOptions(trained.checkpoint, backend=request.backend)
        wanted = EvalRequest(
            folder.data,
            settings=Settings(ms_flip=name == MS_FLIP),
            device=request.device,
            threads=request.threads,
            report=folder.evaluation(name),
            html=folder.evaluation_page(name),
            save_preds=folder.predictions(name),
        )
        report = evaluate(wanted, replace(self.recipe, options=options), self.observer)
        scores = report.scores
        found = f"mIoU {100 * scores.mean_iou:.1f} %, {100 * scores.pixel_accuracy:.1f} % of the pixels right"
        return report, found, folder.evaluation(name)

    def _segment(self, trained: TrainReport) -> Found[tuple[ImageResult, ImageResult]]:
        request, folder = self.request, self.folder
        segmenter = self.recipe(checkpoint=trained.checkpoint, device=request.device, backend=request.backend)
        width, height = (side * PHOTOGRAPH_SCALE for side in request.size)
        jobs = (
            (ImageFile(self._held_out().pairs[0].image, "scene"), Settings()),
            (ImageFile(self.photograph, "photograph"), Settings(scale=(width, height))),
        )
        results = []
        for image, settings in jobs:
            sink = FolderSink(folder.images, KINDS, alpha=0.5)
            [(_, outcome)] = Pipeline(segmenter, [image], KINDS, settings, 0, Silent()).run([0], sink)
            if not isinstance(outcome, ImageResult):
                raise DataError("an image could not be segmented", faults=[outcome.why])
            results.append(outcome)
        names = [", ".join(share.name for share in result.classes[:3]) for result in results]
        return (results[0], results[1]), f"scene: {names[0]}, ...; photograph: {names[1]}, ...", folder.images

    def _held_out(self) -> SegmentationSet:
        return open_dataset(self.folder.data, self.config.data.val_split)

    def _show(self, report: DemoReport) -> Found[None]:
        data = self._held_out()
        scenes = show_scenes(data, self.folder.predictions(SINGLE_SCALE), self.folder.images / "held_out")
        write_sheet(report.sheet, scenes, data)
        credit = "" if self.request.image else resources.PHOTOGRAPH_CREDIT
        write_page(report, scenes, self.photograph, credit)
        return None, "open it in a browser; it needs no network", report.page

    def _report(
        self, trained: TrainReport, single: EvalReport, averaged: EvalReport, images: tuple[ImageResult, ImageResult]
    ) -> DemoReport:
        request, folder = self.request, self.folder
        classes = class_figures(single, averaged, self._held_out())
        largest = max(classes, key=lambda entry: entry.share)
        return DemoReport(
            out=request.out,
            page=folder.page,
            sheet=folder.sheet,
            curves=RunFolder(folder.run).curves,
            data=folder.data,
            run=folder.run,
            request=request,
            training=trained,
            single_scale=_figures(single, folder.evaluation(SINGLE_SCALE), folder.evaluation_page(SINGLE_SCALE)),
            ms_flip=_figures(averaged, folder.evaluation(MS_FLIP), folder.evaluation_page(MS_FLIP)),
            largest=largest.name,
            largest_share=largest.share,
            constant_mean_iou=largest.share / sum(entry.share > 0 for entry in classes),
            classes=classes,
            scene=images[0],
            photograph=images[1],
            steps=tuple(self.steps),
            seconds=time.monotonic() - self.began,
            resumed=self.resumed,
            device=single.run.device_name,
            threads=set_threads(None),
        )


def _figures(report: EvalReport, path: Path, page: Path) -> Figures:
    scores = report.scores
    return Figures(scores.mean_iou, scores.pixel_accuracy, scores.mean_accuracy, report.seconds, path, page)


def class_figures(single: EvalReport, averaged: EvalReport, data: SegmentationSet) -> tuple[ClassFigures, ...]:
    """Every class of `data` with its share of the labelled pixels and its IoU in both evaluations."""
    pixels = max(single.scores.pixels, 1)
    rows: Sequence[tuple[int, ...]] = data.palette.tolist()
    return tuple(
        ClassFigures(one.name, (color[0], color[1], color[2]), one.labelled / pixels, one.iou, other.iou)
        for one, other, color in zip(single.scores.classes, averaged.scores.classes, rows, strict=True)
    )
