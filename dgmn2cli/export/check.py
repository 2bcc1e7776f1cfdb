"""The self-check of an export: the graph in ONNX Runtime beside the network, on windows and through whole images."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from dgmn2cli.data.images import read_image
from dgmn2cli.data.transforms import network_input, resize_image, target_size
from dgmn2cli.demo.streets.scene import draw_scene
from dgmn2cli.errors import CheckFailed
from dgmn2cli.inference.graph import GraphProtocol
from dgmn2cli.inference.plan import Settings, resolve_settings
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.observer import Observer
from dgmn2cli.resources import example_photograph

SEED = 20
SPARE = 2  # pixels that may always differ: of small windows a ten-thousandth is less than one
# the whole procedure on small windows, so that both together take less time than one full window
SINGLE = Settings(scale=(513, 257), window=257, stride=171)
MULTI = Settings(ms_flip=True, scale=(97, 65), window=65, stride=49)


@dataclass(frozen=True)
class Limits:
    """What a graph may differ by."""

    # largest, mean: of the absolute differences between logits
    largest: float
    mean: float
    agreement: float  # share of pixels with the same class, at least


LIMITS = {"float32": Limits(1e-3, 1e-5, 0.9999), "float16": Limits(0.25, 0.01, 0.99)}


@dataclass(frozen=True)
class Difference:
    """How far the graph was from the network on one input."""

    what: str  # the input
    size: tuple[int, int]  # its (width, height)
    # largest, mean: absolute differences; of windows between logits, of images between probabilities
    largest: float
    mean: float
    agreement: float  # share of pixels with the same class
    pixels: int  # that were compared
    procedure: str = ""  # of images, how they were segmented


@dataclass(frozen=True)
class Parity:
    """The figures of a self-check with their conditions; they go into `protocol.json`."""

    # runtime, runtime_version: what ran the graph
    runtime: str
    runtime_version: str
    reference: str  # what it was compared with
    threads: int  # CPU threads of both
    limits: Limits  # what was allowed
    windows: list[Difference]  # differences between logits of single windows
    images: list[Difference]  # differences of whole images, the procedure around the windows included
    # the network's and the graph's, of the one full window, the photograph's, run once
    window_seconds: tuple[float, float]
    seconds: float  # of the whole check

    @property
    def largest(self) -> float:
        """The largest difference between logits."""
        return max(found.largest for found in self.windows)

    @property
    def agreement(self) -> float:
        """The smallest share of pixels with the same class."""
        return min(found.agreement for found in (*self.windows, *self.images))


def compare(network: Segmenter, graph: Segmenter, protocol: GraphProtocol, observer: Observer) -> Parity:
    """Compares a network, as published, with its export: on windows of images and of noise, and on whole small images.

    Raises:
        CheckFailed: they differ by more than `LIMITS` allow.
    """
    began, window = time.perf_counter(), protocol.inference.window
    fixed = protocol.input.height is not None
    part = window if fixed else window // 2 + 1  # a quarter of the time; and of another size than the largest
    street = draw_scene(np.random.RandomState(SEED), (512, 256), ("car", "person")).image
    photograph = read_image(example_photograph())
    noise = np.random.default_rng(SEED).standard_normal((3, part, part)).astype(np.float32)
    inputs = {"a drawn street": _window(street, part), "noise": noise, "the photograph": _window(photograph, window)}
    observer.begin("comparing the graph with the network", len(inputs) + 2)
    windows, times = [], (0.0, 0.0)
    for what, values in inputs.items():
        images = torch.from_numpy(values)[None]
        start = time.perf_counter()
        wanted = network.logits(images).numpy()[0]
        middle = time.perf_counter()
        found = graph.logits(images).numpy()[0]
        times = middle - start, time.perf_counter() - middle
        windows.append(_difference(what, wanted, found))
        observer.advance()
    whole = []
    upright = np.rot90(photograph[::4, ::4]).copy()
    for what, image, how in (("a drawn street", street, SINGLE), ("the photograph, upright", upright, MULTI)):
        how = Settings(protocol="native", window=window, stride=window) if fixed else how
        whole.append(_through_all(what, image, network, graph, how))
        observer.advance()
    parity = Parity(
        graph.info.runtime,
        graph.info.runtime_version,
        f"torch {torch.__version__}, op backend {network.info.backend}",
        torch.get_num_threads(),
        LIMITS[protocol.exporter["dtype"]],
        windows,
        whole,
        times,
        time.perf_counter() - began,
    )
    _require(parity)
    return parity


def _window(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image, fitted so that a window lies within, as network input `(3, side, side)`."""
    fitted = resize_image(image, target_size(image.shape[0], image.shape[1], (4 * side, side)))
    top, left = ((length - side) // 2 for length in fitted.shape[:2])
    return network_input(fitted, slice(top, top + side), slice(left, left + side))


def _through_all(what: str, image: np.ndarray, network: Segmenter, graph: Segmenter, how: Settings) -> Difference:
    wanted, found = (
        segmenter.scores(image, segmenter.plan(image.shape[:2], how)).probabilities().numpy()
        for segmenter in (network, graph)
    )
    return _difference(what, wanted, found, str(resolve_settings(how, network.inference)))


def _difference(what: str, wanted: np.ndarray, found: np.ndarray, procedure: str = "") -> Difference:
    apart = np.abs(wanted - found)
    same = wanted.argmax(0) == found.argmax(0)
    largest, mean = float(apart.max()), float(apart.mean())
    return Difference(what, (wanted.shape[2], wanted.shape[1]), largest, mean, float(same.mean()), same.size, procedure)


def _require(parity: Parity) -> None:
    limits, faults = parity.limits, []
    for found in parity.windows:
        if not found.largest <= limits.largest or not found.mean <= limits.mean:
            faults.append(f"{found.what}: logits differ by {found.largest:.2e}, on average {found.mean:.2e}")
    for found in (*parity.windows, *parity.images):
        wrong = round((1 - found.agreement) * found.pixels)
        if wrong > max(SPARE, (1 - limits.agreement) * found.pixels):
            faults.append(f"{found.what}: {wrong:,} of {found.pixels:,} pixels get another class")
    if faults:
        raise CheckFailed(
            "the exported graph does not agree with the network",
            where=f"{parity.runtime} {parity.runtime_version}",
            why=f"allowed are {limits.largest:g}, on average {limits.mean:g}, and {limits.agreement:.2%} of the pixels",
            hint="Nothing was written. Try another version of the runtime.",
            faults=faults,
        )
