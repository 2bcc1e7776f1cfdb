"""A whole `infer` run: on one process or many, into a folder or archives, from the names to the report."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dgmn2cli.data.archives import find_members, write_archive
from dgmn2cli.distributed.group import Group, launched_world
from dgmn2cli.distributed.processes import collect, on_processes
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import to_plain
from dgmn2cli.inference.files import WORKERS, Pipeline
from dgmn2cli.inference.outputs import ArchiveSink, FolderSink, check_targets, require_new
from dgmn2cli.inference.plan import Settings, resolve_settings
from dgmn2cli.inference.prediction import check_outputs
from dgmn2cli.inference.report import Collected, ImageResult, InferReport, Outcome
from dgmn2cli.inference.results import RESULTS, Earlier, ResultsFile, find_earlier, line_of
from dgmn2cli.inference.segmenter import Segmenter, run_identity
from dgmn2cli.inference.sources import ImageFile, ImageList, expand_braces, find_images, is_archive
from dgmn2cli.observer import Observer, Silent

Load = Callable[..., Segmenter]  # makes the network when called with `device=NAME`; can be pickled


@dataclass(frozen=True)
class InferRequest:
    """What to segment and how."""

    sources: tuple[str, ...]  # files, folders, globs, lists and archives, see `find_images`
    out: str  # a folder, an archive `NAME.tar`, or with braces one for each archive that is read
    # kinds, alpha: what to write, see `Prediction.save`
    kinds: tuple[str, ...] = ("ids", "overlay")
    alpha: float = 0.5
    settings: Settings = field(default_factory=Settings)  # the test procedure
    overwrite: bool = False  # outputs may be there
    resume: bool = False  # images that an earlier run did with the same settings are left as they are
    workers: int = WORKERS  # threads of each process that read ahead, and as many that save
    # device, processes, threads: where, see `on_processes`
    device: str = "auto"
    processes: int = 1
    threads: int | None = None
    compiled: bool = False  # the network goes through `torch.compile`

    def identity(self, segmenter: Segmenter) -> dict[str, Any]:
        """All that the outputs of an image depend on beside its bytes."""
        protocol = resolve_settings(self.settings, segmenter.inference, segmenter.device)
        found = {"model": segmenter.info.model, **run_identity(segmenter.info, protocol), "compiled": self.compiled}
        alpha = {"alpha": self.alpha} if "overlay" in self.kinds else {}
        return to_plain({**found, "kinds": sorted(self.kinds), **alpha})


@dataclass(frozen=True)
class Prepared:
    """The images, and the archives that their outputs go to: none for a folder, else one, or one for each read."""

    images: ImageList
    archives: tuple[Path, ...]

    def of(self, number: int) -> np.ndarray:
        """The indices of the images whose outputs go to an archive."""
        return np.arange(len(self.images)) if len(self.archives) == 1 else self.images.of_archive(number)


def run(
    request: InferRequest, load: Load, observer: Observer | None = None, ready: Callable[[], object] = lambda: None
) -> InferReport:
    """Segments images; bad ones are noted, and the others are done.

    Args:
        load: makes the network; picklable where there are several processes.
        observer: advanced by 1 for each image, in parts; each `ImageResult` is a result.
        ready: called when images and outputs have been checked, before processes start.

    Raises:
        Dgmn2Error: images, settings or outputs are at fault, the network fails, a process died.
    """
    observer = observer or Silent()
    prepared = None if launched_world() > 1 else prepare(request, observer)
    ready()
    how: dict[str, Any] = {"device": request.device, "processes": request.processes, "threads": request.threads}
    return on_processes(_run, (request, load, prepared), observer=observer, **how)


def prepare(request: InferRequest, observer: Observer) -> Prepared:
    """The images and the outputs, checked before a network is loaded.

    Raises:
        ConfigError, DataError, ResourceError: what `find_images` and `check_targets` refuse; archives that do not fit.
    """
    check_outputs(request.kinds)
    targets = expand_braces(request.out)
    if not all(map(is_archive, targets)):
        if len(targets) > 1:
            raise ConfigError("the outputs go to several folders", where=request.out, why="wanted one, or archives")
        images = find_images(request.sources, observer, Path(request.out))
        check_targets(images, Path(request.out), request.kinds, request.overwrite or request.resume)
        return Prepared(images, ())
    images, archives = find_images(request.sources, observer), tuple(map(Path, targets))
    if len(archives) > 1:
        loose = images.places is None or bool((images.places[:, 0] < 0).any())
        if loose or len(images.archives) != len(archives):
            why = f"{len(images.archives)} archives{' and other images' * loose} are read, {len(archives)} are written"
            hint = "Name one archive for each that is read, or one for all."
            raise ConfigError("the archives do not fit", where=request.out, why=why, hint=hint)
    elif request.processes > 1 or launched_world() > 1:
        hint = "Name a folder, or with braces one archive for each that is read."
        raise ConfigError("several processes cannot write one archive", where=request.out, hint=hint)
    hint = "Add --resume or --overwrite, or choose another name with -o."
    require_new(archives, request.overwrite or request.resume, images.archives, hint)
    return Prepared(images, archives)


def _run(group: Group, observer: Observer, request: InferRequest, load: Load, prepared: Prepared | None) -> InferReport:
    prepared = prepared or group.once(partial(prepare, request, observer))
    loading = {"observer": observer} if group.world == 1 else {}  # of several, weights are here before they start
    segmenter = group.together(partial(load, device=str(group.device), **loading))
    identity, images, collected = request.identity(segmenter), prepared.images, Collected()
    pipeline = Pipeline(segmenter, images, request.kinds, request.settings, request.workers, observer)
    observer.begin(f"segmenting {len(images):,} image{'s' * (len(images) != 1)}", len(images))
    results, path = None, None if prepared.archives else Path(request.out, RESULTS)
    if path is None:
        mine = range(group.rank, len(prepared.archives), group.world)
        parts = partial(_to_archives, pipeline, prepared, request, identity, mine)
    else:
        if request.resume:
            pipeline.earlier = group.once(partial(find_earlier, path, images, identity, overwrite=request.overwrite))
        results = group.together(partial(ResultsFile, path, identity) if group.main else lambda: None)
        sink = FolderSink(Path(request.out), request.kinds, request.alpha)
        parts = partial(pipeline.run, _share(pipeline.earlier, len(images), group), sink)
    try:
        collect(group, parts, partial(take, collected, results, images, observer), observer)
    finally:
        if results is not None:
            results.close()
    protocol = resolve_settings(request.settings, segmenter.inference, segmenter.device)
    return group.once(partial(collected.report, segmenter.info, protocol, group.world, path))


def take(
    collected: Collected, results: ResultsFile | None, images: ImageList, observer: Observer, outcome: Outcome
) -> None:
    """Notes what became of an image."""
    index, result = outcome
    collected.add(index, result)
    if isinstance(result, ImageResult) and not result.resumed:
        if results is not None:
            results.add(images.names[index], result)
        observer.result(result)


def _share(earlier: Callable[..., object], count: int, group: Group) -> np.ndarray:
    """The images of this process: as many as any other's of those that were done, and of the others."""
    if not isinstance(earlier, Earlier):
        return np.arange(group.rank, count, group.world)
    done = earlier.offsets >= 0
    return np.sort(np.concatenate([np.flatnonzero(part)[group.rank :: group.world] for part in (done, ~done)]))


def _to_archives(
    pipeline: Pipeline, prepared: Prepared, request: InferRequest, identity: dict[str, Any], numbers: Sequence[int]
) -> Generator[Outcome, None, None]:
    """What becomes of the images of some archives; each archive is there when all of its images are done."""
    for number in numbers:
        path, indices = prepared.archives[number], prepared.of(number)
        done = _in_archive(path, prepared.images, indices, identity, request) if request.resume else None
        if done is not None:
            pipeline.observer.advance(len(done))
            yield from done
            continue
        lines = io.BytesIO()
        with write_archive(path) as writer:
            sink = ArchiveSink(path, writer, request.kinds, request.alpha)
            with closing(pipeline.run(indices, sink)) as outcomes:
                for index, outcome in outcomes:
                    if isinstance(outcome, ImageResult):
                        lines.write(line_of(prepared.images.names[index], outcome, identity))
                    yield index, outcome
            writer.add(RESULTS, lines.getvalue())


def _in_archive(
    path: Path, images: ImageList, indices: np.ndarray, identity: dict[str, Any], request: InferRequest
) -> list[Outcome] | None:
    """The results of all images at `indices` if an archive has them, made of the same bytes with the same settings.

    Raises:
        ConfigError: it has images that were done with other settings, and may not be replaced.
    """
    if not os.path.exists(path):
        return None
    try:
        *_, member = find_members(path, (RESULTS,), Silent())
    except DataError as error:
        if not request.overwrite:
            raise ConfigError("cannot go on with the archive", where=path, why=error.why, hint="Remove it.") from error
        return None
    earlier = find_earlier(path, images, identity, overwrite=request.overwrite, part=member)
    found: list[Outcome] = []
    for index in map(int, indices):
        result = earlier(index, _hash(images[index], request))
        if result is None:
            return None
        found.append((index, result))
    return found


def _hash(image: ImageFile, request: InferRequest) -> str:
    try:
        return hashlib.sha256(image.read(request.settings.max_pixels)).hexdigest()
    except DataError:  # said when it is read again
        return ""
