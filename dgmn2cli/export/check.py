"""The self-check of an export: the graph in ONNX Runtime beside the network, on windows and through whole images.

Both compute in float32 and round differently. What that comes to depends on the network: errors grow with its logits,
and where attention reacts strongly to the places that it samples, as in a network that was hardly trained, each layer
enlarges what those before it have rounded. So the largest difference between logits has a fixed limit, in proportion
only for logits that are larger than usual. Beyond the limits of the mean difference and of the classes of pixels, a
graph is still right if it is about as near to the network in float64 as the network in float32 is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from dgmn2cli.data.images import read_image
from dgmn2cli.data.transforms import network_input, resize_image, target_size
from dgmn2cli.demo.streets.scene import draw_scene
from dgmn2cli.errors import CheckFailed
from dgmn2cli.inference.graph import GraphProtocol
from dgmn2cli.inference.plan import Settings, resolve_settings
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.inference.sliding_window import require_finite
from dgmn2cli.model.attention import use_backend
from dgmn2cli.observer import Observer
from dgmn2cli.resources import example_photograph

SEED = 20
SPARE = 2  # pixels that may always differ: of small windows a ten-thousandth is less than one
USUAL = 32.0  # most networks give logits of up to about this; the limits of larger ones are in proportion
TIE = 1e-6  # of the largest value: what two classes may be apart and still be equal as far as float32 can tell
NEAR = 2.0  # a graph may be this many times as far from the network in float64 as the network in float32 is
# the whole procedure on small windows, so that both together take less time than one full window
SINGLE = Settings(protocol="paper", scale=(513, 257), window=257, stride=171)
MULTI = Settings(ms_flip=True, protocol="paper", scale=(97, 65), window=65, stride=49)


@dataclass(frozen=True)
class Case:
    """An input on which both are compared."""

    what: str  # it, in words
    values_of: Callable[[Segmenter], np.ndarray]  # logits of a window, or probabilities of an image, (C, H, W)
    procedure: str = ""  # of images, how they are segmented

    @classmethod
    def of_window(cls, what: str, values: np.ndarray) -> Case:
        """Of network input `(3, H, W)` float32."""
        images = torch.from_numpy(values)[None]
        return cls(what, lambda segmenter: segmenter.logits(images)[0].numpy())


@dataclass(frozen=True)
class Limits:
    """What a graph may differ by."""

    # largest, mean: of the absolute differences between logits of up to `USUAL`
    largest: float
    mean: float
    agreement: float  # share of pixels with the same class, or tied ones, at least


LIMITS = {"float32": Limits(1e-3, 1e-5, 0.9999), "float16": Limits(0.25, 0.01, 0.99)}


@dataclass(frozen=True)
class Rounding:
    """How far network and graph each are from the network in float64."""

    # network, graph: the mean absolute difference
    network: float
    graph: float
    # network_wrong, graph_wrong: pixels that get another class and are no ties
    network_wrong: int
    graph_wrong: int


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
    wrong: int  # of those: they get another class, although the network's best two are apart
    magnitude: float  # the network's largest absolute value
    seconds: tuple[float, float]  # the network's and the graph's
    procedure: str = ""  # of images, how they were segmented
    rounding: Rounding | None = None  # measured where the graph is beyond the limits of mean or classes

    @property
    def share(self) -> float:
        """What the limits of logits are multiplied by; probabilities have none."""
        return math.inf if self.procedure else max(1.0, self.magnitude / USUAL)


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
    seconds: float  # of the whole check

    @property
    def window_seconds(self) -> tuple[float, float]:
        """The network's and the graph's, of the one full window, the photograph's, run once."""
        return self.windows[-1].seconds

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
    began, cases = time.perf_counter(), _cases(network, protocol)
    observer.begin("comparing the graph with the network", len(cases))
    limits, exact = LIMITS[protocol.exporter["dtype"]], cache(partial(in_float64, network))
    found = []
    for case in cases:
        found.append(difference(case, network, graph, limits, exact))
        observer.advance()
    parity = Parity(
        graph.info.runtime,
        graph.info.runtime_version,
        f"torch {torch.__version__}, op backend {network.info.backend}",
        torch.get_num_threads(),
        limits,
        [seen for seen in found if not seen.procedure],
        [seen for seen in found if seen.procedure],
        time.perf_counter() - began,
    )
    _require(parity)
    return parity


def _cases(network: Segmenter, protocol: GraphProtocol) -> list[Case]:
    """Windows of two images and of noise, then whole images."""
    window, fixed = protocol.inference.window, protocol.input.height is not None
    part = window if fixed else window // 2 + 1  # a quarter of the time; and of another size than the largest
    street = draw_scene(np.random.RandomState(SEED), (512, 256), ("car", "person")).image
    photograph = read_image(example_photograph())
    noise = np.random.default_rng(SEED).standard_normal((3, part, part)).astype(np.float32)
    inputs = {"a drawn street": _window(street, part), "noise": noise, "the photograph": _window(photograph, window)}
    cases = [Case.of_window(what, values) for what, values in inputs.items()]
    upright = np.rot90(photograph[::4, ::4]).copy()
    for what, image, how in (("a drawn street", street, SINGLE), ("the photograph, upright", upright, MULTI)):
        how = Settings(protocol="native", window=window, stride=window) if fixed else how
        cases.append(Case(what, partial(_probabilities, image, how), str(resolve_settings(how, network.inference))))
    return cases


def _window(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image, fitted so that a window lies within, as network input `(3, side, side)`."""
    fitted = resize_image(image, target_size(image.shape[0], image.shape[1], (4 * side, side)))
    top, left = ((length - side) // 2 for length in fitted.shape[:2])
    return network_input(fitted, slice(top, top + side), slice(left, left + side))


def _probabilities(image: np.ndarray, how: Settings, segmenter: Segmenter) -> np.ndarray:
    return segmenter.scores(image, segmenter.plan(image.shape[:2], how)).probabilities().numpy()


def difference(
    case: Case,
    network: Segmenter,
    graph: Segmenter,
    limits: Limits | None = None,
    exact: Callable[[], Segmenter] | None = None,
) -> Difference:
    """How far the graph is from the network.

    Args:
        limits: where only those of mean or classes are exceeded, both are compared with `exact`.
        exact: gives the network in float64.

    Raises:
        NonFiniteError: the network gives NaN or infinity.
    """
    start = time.perf_counter()
    wanted = case.values_of(network)
    middle = time.perf_counter()
    found = case.values_of(graph)
    seconds = middle - start, time.perf_counter() - middle
    require_finite(torch.from_numpy(wanted))
    apart, other = np.abs(wanted - found), wanted.argmax(0) != found.argmax(0)
    seen = Difference(
        case.what,
        (wanted.shape[2], wanted.shape[1]),
        float(apart.max()),
        float(apart.mean()),
        1 - float(other.mean()),
        other.size,
        _wrong(wanted, found),
        float(np.abs(wanted).max()),
        seconds,
        case.procedure,
    )
    if limits is None or exact is None or not faults(seen, limits) or seen.largest > seen.share * limits.largest:
        return seen
    truth = case.values_of(exact())
    means = [float(np.abs(values - truth).mean()) for values in (wanted, found)]
    return replace(seen, rounding=Rounding(means[0], means[1], _wrong(truth, wanted), _wrong(truth, found)))


def _wrong(wanted: np.ndarray, found: np.ndarray) -> int:
    """Pixels of `(C, H, W)` to which `found` gives another class than `wanted`, except where that has a tie."""
    second, best = np.partition(wanted, -2, axis=0)[-2:]
    tied = best - second <= TIE * np.abs(wanted).max()
    return int(((wanted.argmax(0) != found.argmax(0)) & ~tied).sum())


def in_float64(network: Segmenter) -> Segmenter:
    """A copy of a network, as published, that computes in float64."""
    exact = copy(network)
    exact.network, exact.dtype = deepcopy(network.network).double(), torch.float64
    use_backend(exact.network, "reference")
    return exact


def faults(seen: Difference, limits: Limits) -> list[str]:
    """What is beyond the limits, and is more than the network's own rounding."""
    rounding, spare, found = seen.rounding, max(SPARE, (1 - limits.agreement) * seen.pixels), []
    values = f"{seen.what}: logits of up to {seen.magnitude:.1f}"
    if not seen.largest <= seen.share * limits.largest:
        found.append(f"{values} differ by {seen.largest:.2e}")
    if not seen.mean <= seen.share * limits.mean and not (rounding and rounding.graph <= NEAR * rounding.network):
        found.append(f"{values} differ by {seen.mean:.2e} on average")
    if seen.wrong > spare and not (rounding and rounding.graph_wrong <= max(spare, NEAR * rounding.network_wrong)):
        found.append(f"{seen.what}: {seen.wrong:,} of {seen.pixels:,} pixels get another class")
    return found


def _require(parity: Parity) -> None:
    limits = parity.limits
    found = [fault for seen in (*parity.windows, *parity.images) for fault in faults(seen, limits)]
    if found:
        allowed = f"{limits.largest:g}, on average {limits.mean:g}, for logits of up to {USUAL:g}"
        raise CheckFailed(
            "the exported graph does not agree with the network",
            where=f"{parity.runtime} {parity.runtime_version}",
            why=f"allowed are {allowed}, and another class in {1 - limits.agreement:.2%} of the pixels",
            hint="Nothing was written. Try another version of the runtime.",
            faults=found,
        )
