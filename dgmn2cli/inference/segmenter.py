"""A network ready for images: the published test procedure around it, window by window."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgmn2cli.config.schema import InferenceProcedure
from dgmn2cli.data.images import MAX_PIXELS, read_image
from dgmn2cli.data.transforms import NORMAL, network_input, resize_image
from dgmn2cli.errors import DataError, ResourceError, is_exhaustion
from dgmn2cli.inference.cuda_graphs import unrecorded
from dgmn2cli.inference.explain import Explanation, explain
from dgmn2cli.inference.pipeline import Footprint, in_threads
from dgmn2cli.inference.plan import (
    SAVE_BYTES,
    Machine,
    Plan,
    Protocol,
    Settings,
    TooLargeError,
    fitted,
    require_possible,
    require_room,
    resolve_settings,
)
from dgmn2cli.inference.prediction import ClassList, Prediction
from dgmn2cli.inference.sliding_window import PUBLISHED, Crop, Finish, Scores, View, segment
from dgmn2cli.observer import Observer
from dgmn2cli.runtime import PeakMeter, in_use, is_out_of_memory, resolve_dtype
from dgmn2cli.zoo import short_name

LOGGER = logging.getLogger("dgmn2cli")


@dataclass(frozen=True)
class RunInfo:
    """How a network runs, for reports."""

    model: str  # zoo key or configuration name
    checkpoint: str  # path of the weights
    sha256: str  # hash of that file
    device: str  # `cpu`, `cuda:0`, ...
    device_name: str  # what that is
    dtype: str  # of weights and activations; of a graph's, of what goes in and comes out
    backend: str  # op backend in use; of a graph none
    form: str  # `fused` (inference form), `published` (order of operations as published) or `graph`
    weights: str = ""  # the checkpoint's entry that holds the weights, such as `state_dict` or `state_dict_ema`
    runtime: str = "torch"  # what runs it: `torch`, `onnxruntime` or `openvino`
    runtime_version: str = str(torch.__version__)  # of that
    precision: str = ""  # in which it computes; `dtype` if not said
    graph: str = ""  # path of the graph, if it is one; `sha256` is that of the weights it was made from, if known
    graph_sha256: str = ""  # hash of that file
    # of published weights; what users trained is theirs
    licence: str | None = field(default=None, metadata={"json": False})
    dtype_reason: str = ""  # where the dtype was chosen, why this one

    def __post_init__(self) -> None:
        if not self.precision:
            object.__setattr__(self, "precision", self.dtype)

    @property
    def title(self) -> str:
        """The model, and whose weights where they are a user's: `mine/best.pth of fpn-tiny` in a run folder `mine`."""
        file = Path(self.checkpoint)
        if self.runtime != "torch" or file.stem == self.sha256:  # so the cache calls published ones
            return short_name(self.model)
        run = f"{file.absolute().parents[1].name}/" if file.absolute().parent.name == "checkpoints" else ""
        return f"{run}{file.name} of {short_name(self.model)}"

    @property
    def engine(self) -> str:
        """What ran, in words: the op backend, a graph's runtime, or neither."""
        if not self.graph:
            return f"op backend {self.backend}" if self.backend else "no network"
        return f"{self.runtime} {self.runtime_version}, graph {self.graph_sha256[:12]}"


def run_identity(run: RunInfo, protocol: Protocol | None) -> dict[str, object]:
    """All that masks depend on beside the images, by the names a user knows: what may go on with what was begun."""
    settings = asdict(protocol) if protocol is not None else {}
    if run.form == "fused" and run.device == "cpu":
        settings.pop("window_batch", None)  # any number of windows at a time gives the same bits
    return {
        "checkpoint sha256": run.sha256,
        "weights": run.weights,
        "runtime": run.runtime,
        "graph sha256": run.graph_sha256,
        "device": run.device.split(":")[0],
        "dtype": run.dtype,
        "backend": run.backend,
        "form": run.form,
        **{f"protocol {name}": value for name, value in settings.items()},
    }


def differences(old: dict[str, Any], new: dict[str, Any], before: str) -> list[str]:
    """One line for each entry in which two identities, as JSON types, differ; `before` is what has the old one."""
    return [
        f"{key}: {before} has {json.dumps(old.get(key))}, this run {json.dumps(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


@dataclass(eq=False, repr=False)
class Segmenter:
    """A network ready to segment images. It can be copied and pickled."""

    network: nn.Module  # maps normalised RGB `(B, 3, H, W)` on `device` in `dtype` to logits `(B, C, H, W)`
    classes: ClassList  # what the logits' channels mean
    info: RunInfo  # how it runs
    inference: InferenceProcedure  # the procedure in force when `predict` is not told otherwise
    # (3, 256) float32, what each byte becomes, per channel in red green blue order
    normal: np.ndarray = field(default_factory=lambda: NORMAL)
    finish: Finish = PUBLISHED  # how its logits become probabilities of the final image
    again: Callable[..., Segmenter] | None = None  # makes it anew from the same weights, with other options

    def __post_init__(self) -> None:
        self.device = torch.device(self.info.device)
        self.dtype = resolve_dtype(self.info.dtype)
        self._fitting: int | None = None  # windows at a time that memory was seen to hold
        self._window_bytes: dict[tuple[int, int], int] = {}

    def __repr__(self) -> str:
        run = self.info
        return f"Segmenter({run.title!r}, device={run.device!r}, dtype={run.dtype!r}, runtime={run.runtime!r})"

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits of one batch of windows, by the path that every command uses.

        Args:
            images: `(B, 3, H, W)` float, RGB, normalised with the ImageNet mean and deviation; any device.

        Returns:
            `(B, C, H, W)` float32 on the network's device.
        """
        images = images.to(self.device, self.dtype)
        if self._fitting is not None and images.shape[0] > self._fitting:
            return torch.cat([self.logits(part) for part in images.split(self._fitting)])
        try:
            return self.network(images).float()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if images.shape[0] == 1:
                why = f"a single window of {images.shape[3]}x{images.shape[2]} does not fit"
                hint = "Use a smaller --window, --dtype bfloat16, or another --device."
                raise ResourceError("out of memory", where=self.info.device, why=why, hint=hint) from error
        self._fitting = images.shape[0] // 2
        LOGGER.warning("out of memory with %d windows at a time: going on with %d", images.shape[0], self._fitting)
        return self.logits(images)

    def predict(
        self,
        image: str | Path | np.ndarray,
        ms_flip: bool = False,
        scale: tuple[int, int] | None = None,
        window: int | None = None,
        stride: int | None = None,
        protocol: str | None = None,
        window_batch: int | None = None,
        observer: Observer | None = None,
    ) -> Prediction:
        """Segments one image by the published test procedure.

        Args:
            image: a path, or (H, W, 3) uint8 RGB.
            ms_flip, scale, window, stride, protocol, window_batch: as in `Settings`; the configuration's if None.
            observer: told of each window.

        Raises:
            DataError: the image cannot be read.
            ConfigError: an impossible setting.
            NonFiniteError: the network gave NaN or infinity.
        """
        pixels, settings = _bgr(image), Settings(ms_flip, scale, window, stride, protocol, window_batch)
        plan = self.plan(pixels.shape[:2], settings)
        if observer is not None:
            observer.begin("segmenting", plan.windows)
        return self.predict_planned(pixels, plan, settings, observer.advance if observer is not None else None)

    def stream(
        self,
        images: Iterable[str | Path | np.ndarray],
        settings: Settings | None = None,
        *,
        workers: int = 2,
        skip: Callable[[str | Path | np.ndarray, DataError | TooLargeError], object] | None = None,
    ) -> Generator[Prediction, None, None]:
        """Segments images one after the other, in their order, while threads read the next ones.

        `images` is asked for `workers` images more than were segmented, so that it may be without end. Closing the
        generator ends the threads.

        Args:
            images: paths, or arrays (H, W, 3) uint8 RGB; a prediction's `path` says which.
            settings: the test procedure; the configuration's if None.
            workers: threads that read; 0, and always where the memory is limited: none, one image after the other.
            skip: called in place of raising for an image that cannot be read, or is too large for the memory; it is
                left out.

        Raises:
            DataError: an image cannot be read, and there is no `skip`.
            ConfigError: an impossible setting.
            NonFiniteError: the network gave NaN or infinity.
            ResourceError: out of memory, or the limit is too small.
        """
        settings = settings or Settings()

        def read(image: str | Path | np.ndarray) -> tuple[str | Path | np.ndarray, np.ndarray | DataError]:
            try:
                return image, _bgr(image, settings.max_pixels)
            except DataError as error:
                if is_exhaustion(error.__cause__):
                    raise
                return image, error

        limited = settings.max_memory is not None and self.device.type == "cpu"
        with closing(in_threads(read, images, 0 if limited else workers)) as found:
            for image, pixels in found:
                try:
                    if isinstance(pixels, DataError):
                        raise pixels
                    plan = self.plan(pixels.shape[:2], settings)
                except (DataError, TooLargeError) as error:
                    if skip is None:
                        raise
                    skip(image, error)
                    continue
                made = self.predict_planned(pixels, plan, settings)
                yield made if isinstance(image, np.ndarray) else replace(made, path=Path(image))

    def predict_planned(
        self, image: np.ndarray, plan: Plan, settings: Settings, progress: Callable[[int], object] | None = None
    ) -> Prediction:
        """As `predict`, of an image (H, W, 3) uint8, blue green red, by the `plan` that `settings` gave for it."""
        scores = self.scores(image, plan, progress)
        ids, confidence = scores.classes()

        def orientations() -> tuple[Scores, Scores]:
            single = self.plan(plan.size, replace(settings, ms_flip=False))
            seen = self.scores(image, single, progress) if settings.ms_flip else scores
            return seen, self.scores(image, replace(single, flips=(True,)), progress)

        classes, windows = self.classes, plan.windows
        return Prediction(ids.numpy(), confidence.numpy(), classes, image, scores, windows, orientations)

    def mirrored_windows(self, plan: Plan, settings: Settings) -> int:
        """Windows that `Prediction.disagreement` takes beyond those of `plan`."""
        single = self.plan(plan.size, replace(settings, ms_flip=False))
        return single.windows * (2 if settings.ms_flip else 1)

    def explain(
        self, image: str | Path | np.ndarray, x: float, y: float, settings: Settings | None = None
    ) -> Explanation:
        """What every block and head attends to at one position: the nodes that the network used.

        The image is seen at a single scale, unmirrored, in the window whose centre is nearest to the position.

        Args:
            image: a path, or (H, W, 3) uint8 RGB.
            x, y: the position in pixels of the image, 0 being the centre of the first one.
            settings: the test procedure; the configuration's if None.

        Raises:
            DataError: the image cannot be read.
            ConfigError: an impossible setting, a position outside the image, or a network without such layers.
            NonFiniteError: the network gave NaN or infinity.
        """
        pixels = _bgr(image)
        plan = self.plan(pixels.shape[:2], replace(settings or Settings(), ms_flip=False))
        [view] = self.views(pixels, plan)
        network = unrecorded(self.network)
        logits = replace(self, network=network).logits
        window, chances, blocks = explain(network, logits, view, plan.windowing, (x, y), pixels)
        best, model = int(chances.argmax()), self.info.model
        return Explanation(model, x, y, window, self.classes.names[best], float(chances[best]), blocks, pixels)

    def scores(self, image: np.ndarray, plan: Plan, progress: Callable[[int], object] | None = None) -> Scores:
        """Class scores of one image, (H, W, 3) uint8, blue green red, by `plan`; `progress` gets counts of windows."""
        device = torch.device("cpu") if plan.on_host else None
        views = self.views(image, plan)
        with torch.inference_mode():
            windows = plan.windowing
            return segment(
                self.logits, views, plan.size, windows, progress, keep=plan.keep, device=device, finish=self.finish
            )

    def plan(
        self,
        size: tuple[int, ...],
        settings: Settings | None = None,
        result_bytes: int = SAVE_BYTES,
        used: int | None = None,
    ) -> Plan:
        """What `settings` mean for an image of `size` (height, width): its views and the windows of each.

        Where they limit the memory, one window of zeros goes through the network first, to measure what it takes.

        Args:
            size: the image's; it must be in memory already where that is limited.
            settings: the test procedure; the configuration's if None.
            result_bytes: per pixel, for what is done with the result.
            used: bytes that count as in use, with what other threads may come to hold; measured if None.

        Raises:
            ConfigError: an impossible setting.
            ResourceError: the memory limit cannot be kept, memory cannot be measured here; `TooLargeError` where
                smaller images may fit.
        """
        settings = settings or Settings()
        plan = Plan.of(resolve_settings(settings, self.inference, self.device), size)
        if settings.max_memory is None:
            require_possible(plan, len(self.classes.names), self.device)
            return plan
        self.require_room(settings, 0, "reading the image")
        window, apart = self._measured(plan.largest_window), self.device.type != "cpu"
        used = in_use(self.device) if used is None else used
        machine = Machine(settings.max_memory, used, window, len(self.classes.names), apart)
        return fitted(plan, machine, result_bytes)

    def readers_within(
        self,
        sizes: Sequence[tuple[int, int]],
        settings: Settings,
        workers: int,
        footprint: Footprint,
        behind: int,
        result_bytes: int = SAVE_BYTES,
    ) -> tuple[int, int]:
        """How many threads may read ahead under a memory limit, and the bytes that are in use at most when they do.

        It is decided by the largest of the images' `sizes` (height, width), before the first one is read, so that no
        limit is passed in the meantime; `behind`: images that may wait to be finished.

        Raises:
            ResourceError: the limit is too small for one thread, too.
        """
        height, width = max(sizes, key=lambda size: size[0] * size[1])
        self.plan((height, width), settings, result_bytes)  # a window is measured while no thread disturbs
        before, workers = in_use(self.device), max(1, workers)
        while True:
            ahead = before + height * width * footprint.of(workers, behind)
            try:
                self.plan((height, width), settings, result_bytes, ahead)
            except ResourceError:
                if workers == 1:
                    raise
                workers -= 1
            else:
                return workers, ahead

    def require_room(self, settings: Settings, needed: int, doing: str) -> None:
        """Raises ResourceError where `settings` limit the memory and it was exceeded, or `needed` more bytes would."""
        if settings.max_memory is not None:
            require_room(settings.max_memory, self.device, needed, doing)

    def _measured(self, size: tuple[int, int]) -> int:
        """Bytes that one window of `size` takes on its way through the network."""
        if size not in self._window_bytes:
            with torch.inference_mode(), PeakMeter(self.device) as meter:
                self.logits(torch.zeros(1, 3, *size))
            assert meter.peak is not None  # `require_room` refuses where it cannot be known
            self._window_bytes[size] = meter.peak
        return self._window_bytes[size]

    def views(self, image: np.ndarray, plan: Plan) -> list[View]:
        """The inferences of an image (H, W, 3) uint8, blue green red; each is resized when it is opened."""
        resize = lru_cache(maxsize=1)(lambda size: resize_image(image, size))  # both orientations share one image

        def view(scale: tuple[int, int] | None, size: tuple[int, int], flip: bool) -> View:
            return View(size, lambda: self._opened(image if scale is None else resize(size), flip), flip)

        return [
            view(scale, size, flip) for scale, size in zip(plan.scales, plan.sizes, strict=True) for flip in plan.flips
        ]

    def _opened(self, image: np.ndarray, flip: bool) -> Crop:
        """Gives the network input of any part of an image; off the CPU, from bytes that lie on the device."""
        if self.device.type == "cpu":
            return lambda rows, columns: torch.from_numpy(
                network_input(image, rows, columns, flip=flip, table=self.normal)
            )
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1).flip(0)  # (3, h, w), red green blue
        table = torch.from_numpy(self.normal).to(self.device)

        def crop(rows: slice, columns: slice) -> Tensor:
            part = (pixels.flip(2) if flip else pixels)[:, rows, columns]
            return table.gather(1, part.flatten(1).long()).view(part.shape)

        return crop


def _bgr(image: str | Path | np.ndarray, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image as (H, W, 3) uint8, blue green red."""
    if not isinstance(image, np.ndarray):
        return read_image(image, max_pixels)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        why = f"{image.dtype} of shape {image.shape}, wanted uint8 of shape (H, W, 3), RGB"
        raise DataError("this is not an image", why=why)
    return np.ascontiguousarray(image[:, :, ::-1])
