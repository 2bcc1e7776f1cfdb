"""Segmenting on a Ray cluster: actors hold the network; retries and placement are Ray's. Needs the extra `ray`."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dgmn2cli.data.images import decode_image
from dgmn2cli.distributed.group import launched_world
from dgmn2cli.errors import ConfigError, Dgmn2Error, NetworkError, ResourceError, require_installed
from dgmn2cli.inference.files import Pipeline
from dgmn2cli.inference.load import load
from dgmn2cli.inference.outputs import FolderSink
from dgmn2cli.inference.plan import Protocol, Settings, resolve_settings
from dgmn2cli.inference.report import Collected, InferReport
from dgmn2cli.inference.results import RESULTS, Earlier, ResultsFile, find_earlier
from dgmn2cli.inference.run import InferRequest, Load, prepare, take
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.inference.sources import ImageList
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.runtime import set_threads

BATCH = 8  # images that an actor gets at a time: what is done again where one dies
CONNECT = 10.0  # seconds in which a cluster must answer
Batch = dict[str, Any]


class SegmentBatch:
    """Segments batches of a Ray data set: the class for `map_batches`, whose actors each load the network once.

    Args:
        model: as for `load`.
        settings: the test procedure; the configuration's if None.
        make: makes the segmenter in place of `load`.
        options: as for `load`.
    """

    def __init__(
        self,
        model: str = "setr_pup-tiny",
        settings: Settings | None = None,
        make: Callable[[], Segmenter] | None = None,
        **options: Any,
    ) -> None:
        self.segmenter = make() if make is not None else load(model, **options)
        self.settings = settings or Settings()

    def __call__(self, batch: Batch) -> Batch:
        """The batch with two columns more.

        Args:
            batch: has a column `image`, (H, W, 3) uint8 RGB as `ray.data.read_images` gives, or `bytes`, image files as
                `ray.data.read_binary_files` gives, which is left out of the result.

        Returns:
            `ids`, (H, W) uint8, and `doubt`, one minus the mean confidence, beside the others.

        Raises:
            DataError: an image cannot be read.
            ConfigError: there is no such column.
        """
        if "image" not in batch and "bytes" not in batch:
            why, hint = f"the columns are {', '.join(batch)}", "Give `image` or `bytes`."
            raise ConfigError("there are no images in the batch", why=why, hint=hint)
        images = batch.get("image")
        if images is None:
            images = [decode_image(data, self.settings.max_pixels)[..., ::-1] for data in batch["bytes"]]
        made = list(self.segmenter.stream(images, self.settings))
        ids = np.empty(len(made), object)
        ids[:] = [prediction.ids for prediction in made]
        kept = {name: column for name, column in batch.items() if name != "bytes"}
        return {**kept, "ids": ids, "doubt": np.array([prediction.doubt for prediction in made])}


def run_on_ray(
    request: InferRequest,
    make: Load,
    address: str,
    observer: Observer | None = None,
    ready: Callable[[], object] = lambda: None,
) -> InferReport:
    """As `inference.run.run`, on `request.processes` actors of a Ray cluster; the output folder is one that all see.

    Args:
        address: `local` starts Ray here for this run; else that of a running cluster, such as `auto` or `host:6379`.

    Raises:
        Dgmn2Error: as `run`.
        ResourceError: Ray is not installed, or gives up.
        NetworkError: there is no such cluster.
    """
    observer = observer or Silent()
    require_ray(address)
    request = replace(request, out=os.path.abspath(request.out))
    prepared = prepare(request, observer)
    if prepared.archives:
        raise ConfigError("--ray cannot write archives", where=request.out, hint="Name a folder that all machines see.")
    ready()
    images, path, collected = prepared.images, Path(request.out, RESULTS), Collected()
    with _ray(address) as ray:
        gpus = int(request.device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0) > 0)
        resources = {"num_cpus": 1, "num_gpus": gpus}
        with _own_errors(ray):
            run, identity, protocol = ray.get(ray.remote(**resources)(_identify).remote(make, request))
        earlier = None
        if request.resume:
            earlier = find_earlier(path, images, identity, overwrite=request.overwrite)
        observer.begin(f"segmenting {len(images):,} images", len(images))
        results = ResultsFile(path, identity)
        try:
            found = ray.data.from_blocks(_blocks(images, earlier)).map_batches(
                _Worker,
                fn_constructor_args=(make, request),
                batch_size=BATCH,
                compute=ray.data.ActorPoolStrategy(size=request.processes),
                **resources,
            )
            with _own_errors(ray):
                for row in found.iter_rows():
                    take(collected, results, images, observer, (row["index"], pickle.loads(row["outcome"])))
                    observer.advance()
        finally:
            results.close()
    return collected.report(run, protocol, request.processes, path)


def require_ray(address: str) -> None:
    """Refuses, before anything is looked for, what can be no cluster.

    Raises:
        ConfigError: the address is empty, or this process is one of several that torchrun started.
        ResourceError: Ray is not installed.
    """
    if not address.strip():
        raise ConfigError("the address of the Ray cluster is empty", hint="Give local, auto or HOST:PORT.")
    if launched_world() > 1:
        raise ConfigError("--ray within torchrun", why="torchrun has started the processes", hint="Leave out one.")
    require_installed("ray", "ray")


@contextmanager
def _ray(address: str) -> Iterator[Any]:
    """Ray, connected, silent; left as it was."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it would write beside the answer
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent from here without being asked for
    import ray
    import ray.data

    logging.getLogger("ray").setLevel(logging.ERROR)
    given: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    try:
        if address not in ("local", "auto") and "://" not in place:  # Ray would try for a minute, and say less
            socket.create_connection((host, int(port)), CONNECT).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **given)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        hint = "Start one with `ray start --head`, or use --ray local."
        raise NetworkError("cannot reach the Ray cluster", where=address, why=why, hint=hint) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_errors(ray: Any) -> Iterator[None]:
    """Within the block an error of ours that ended a task is raised as itself; Ray's own are named."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Dgmn2Error):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from error
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise ResourceError("Ray gave up", why=why, hint="--resume goes on from what was saved.") from error


def _identify(make: Load, request: InferRequest) -> tuple[RunInfo, dict[str, Any], Protocol]:
    segmenter = make(device=request.device)
    protocol = resolve_settings(request.settings, segmenter.inference, segmenter.device)
    return segmenter.info, request.identity(segmenter), protocol


def _blocks(images: ImageList, earlier: Earlier | None) -> list[Any]:
    """The images as tables that Ray deals out, pickled, since their names may be no text."""
    import pyarrow

    offsets = earlier.offsets if earlier is not None else np.full(len(images), -1)

    def row(index: int) -> dict[str, Any]:
        file = images[index]
        archive = file.archive and (file.archive[0].absolute(), *file.archive[1:])
        image = pickle.dumps(replace(file, path=file.path.absolute(), archive=archive))
        return {"index": index, "image": image, "offset": int(offsets[index])}

    indices = range(len(images))
    return [pyarrow.Table.from_pylist([*map(row, indices[at : at + BATCH])]) for at in indices[::BATCH]]


class _Worker:
    """An actor: the network, which segments batches of images into the output folder."""

    def __init__(self, make: Load, request: InferRequest) -> None:
        set_threads(request.threads)
        self.segmenter, self.request = make(device=request.device), request

    def __call__(self, batch: Batch) -> Batch:
        request, images = self.request, [pickle.loads(image) for image in batch["image"]]
        earlier = Earlier(Path(request.out, RESULTS), images, batch["offset"], request.kinds)
        pipeline = Pipeline(self.segmenter, images, request.kinds, request.settings, request.workers, Silent(), earlier)
        outcomes = np.empty(len(images), object)
        for index, outcome in pipeline.run(
            range(len(images)), FolderSink(Path(request.out), request.kinds, request.alpha)
        ):
            outcomes[index] = pickle.dumps(outcome)
        return {"index": batch["index"], "outcome": outcomes}
