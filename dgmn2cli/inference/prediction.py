"""What comes out of segmenting one image: class ids, confidences, shares, and the files they become."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from dgmn2cli.data.cityscapes import CLASSES, LABEL_ID_OF_TRAIN_ID, PALETTE
from dgmn2cli.data.images import encode_png
from dgmn2cli.errors import ConfigError
from dgmn2cli.files import atomic_write, to_json
from dgmn2cli.inference.sliding_window import Scores, entropy
from dgmn2cli.inference.visualize import class_shares, colorize, overlay_with_legend
from dgmn2cli.notebook import image_html

OUTPUTS = ("ids", "color", "overlay", "labelids", "conf", "entropy", "disagreement", "probs", "stats")
OF_SCORES = ("entropy", "disagreement", "probs")  # those that are made from the class scores of all pixels
_SUFFIX = {"probs": ".npz", "stats": ".json"}


@dataclass(frozen=True)
class ClassShare:
    """How much of an image one class covers: its id, its name, its pixels and their share of all, 0 to 1."""

    id: int
    name: str
    pixels: int
    share: float


@dataclass(frozen=True)
class ClassList:
    """The classes a network tells apart."""

    names: tuple[str, ...]  # one per class id
    palette: np.ndarray  # (N, 3) uint8, red green blue
    cityscapes: bool  # whether they are the 19 Cityscapes classes, for which official label ids exist
    stated: bool = True  # the checkpoint or the data set says so; else the names are guessed from their number


CITYSCAPES = ClassList(CLASSES, PALETTE, cityscapes=True)


def ranked(counts: Iterable[tuple[str, float]], whole: float) -> list[ClassShare]:
    """The classes present, largest first, of the name and the pixels of each class in order, and of all pixels."""
    found = enumerate((name, round(float(count))) for name, count in counts)
    shares = [ClassShare(index, name, count, count / whole) for index, (name, count) in found if count]
    return sorted(shares, key=lambda share: -share.share)


def mean_doubt(confidence: np.ndarray) -> float:
    """One minus the mean confidence of all pixels: what images are ranked by where there are no labels."""
    return 1.0 - float(confidence.mean(dtype=np.float64))


@dataclass(frozen=True)
class Prediction:
    """The segmentation of one image.

    Attributes:
        ids: (H, W) uint8, the most probable class of each pixel, at the image's displayed size.
        confidence: (H, W) float32, that class's probability.
        classes: what the ids mean.
        image: (H, W, 3) uint8, blue green red: the image itself.
        scores: what the probabilities are made from when asked for.
        windows: windows that went through the network.
        orientations: gives the scores of a single scale, as the image is and mirrored.
        path: the image's file, where it is from one.
    """

    ids: np.ndarray
    confidence: np.ndarray
    classes: ClassList
    image: np.ndarray
    scores: Scores
    windows: int
    orientations: Callable[[], tuple[Scores, Scores]]
    path: Path | None = None

    def __repr__(self) -> str:
        height, width = self.ids.shape
        return f"Prediction(path={str(self.path or '')!r}, width={width}, height={height}, windows={self.windows})"

    @property
    def doubt(self) -> float:
        """One minus the mean confidence."""
        return mean_doubt(self.confidence)

    @cached_property
    def probs(self) -> np.ndarray:
        """(C, H, W) float32 class probabilities; computed on first use (76 bytes a pixel for 19 classes)."""
        return self.scores.probabilities().cpu().numpy()

    @cached_property
    def entropy(self) -> np.ndarray:
        """(H, W) float32: the entropy of each pixel's probabilities, 0 to 1; computed on first use."""
        return np.concatenate([entropy(values).cpu().numpy() for _, values in self.scores.bands()])

    @cached_property
    def disagreement(self) -> np.ndarray:
        """(H, W) float32: how far the probabilities move when the image is mirrored, at a single scale.

        Half of the sum of their absolute differences, 0 to 1; segments the image once more on first use.
        """
        seen, mirrored = (scores.bands() for scores in self.orientations())
        pairs = zip(seen, mirrored, strict=True)
        return np.concatenate([((one - other).abs().sum(0) / 2).cpu().numpy() for (_, one), (_, other) in pairs])

    def overlay(self, alpha: float = 0.5) -> np.ndarray:
        """The image tinted by class with a legend below it: (h, w, 3) uint8, blue green red."""
        return overlay_with_legend(self.image, self.ids, self.classes.names, self.classes.palette, alpha)

    def stats(self) -> list[ClassShare]:
        """The classes present, largest first."""
        shares = class_shares(self.ids, len(self.classes.names))
        return ranked(zip(self.classes.names, shares * self.ids.size, strict=True), self.ids.size)

    def save(
        self, folder: str | Path, stem: str, kinds: Sequence[str] = ("ids", "overlay"), alpha: float = 0.5
    ) -> dict[str, Path]:
        """Writes `STEM_KIND.png` (`.npz` for probs, `.json` for stats) for each kind, whole or not at all.

        Kinds: `ids` (class ids as a palette PNG), `color`, `overlay`, `labelids` (official Cityscapes ids), `conf`
        (confidence x 255), `entropy` and `disagreement` (x 255), `probs` (float16, array `probs`), `stats`.

        Raises:
            ConfigError: an unknown kind, or `labelids` of other classes than Cityscapes'.
            ResourceError: a file cannot be written.
        """
        check_outputs(kinds, self.classes)
        paths = {kind: output_path(folder, stem, kind) for kind in kinds}
        for kind, path in paths.items():
            atomic_write(path, self.encode(kind, alpha))
        return paths

    def encode(self, kind: str, alpha: float = 0.5) -> bytes:
        """The bytes of the file that `save` writes for one of its kinds."""
        if kind == "ids":
            return encode_png(self.ids, self.classes.palette)
        if kind == "color":
            return encode_png(colorize(self.ids, self.classes.palette))
        if kind == "overlay":
            return encode_png(self.overlay(alpha))
        if kind == "labelids":
            return encode_png(LABEL_ID_OF_TRAIN_ID[self.ids])
        if kind == "stats":
            return to_json({"size": self.ids.shape[::-1], "classes": self.stats()}).encode() + b"\n"
        if kind == "probs":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, probs=self.probs.astype(np.float16, copy=False))
            return buffer.getvalue()
        shares = getattr(self, {"conf": "confidence"}.get(kind, kind))  # from 0 to 1
        return encode_png(np.rint(shares.clip(0, 1) * 255).astype(np.uint8))

    def without_scores(self, kinds: Sequence[str]) -> Prediction:
        """The same, its class scores let go once what `kinds` take of them is computed: `encode` needs no more.

        So it takes little memory while it waits, and any thread can encode it. `probs` are float16 then.
        """
        kept = {kind: getattr(self, kind) for kind in OF_SCORES if kind in kinds}
        if "probs" in kept:
            kept["probs"] = kept["probs"].astype(np.float16)
        made = replace(self, scores=None, orientations=None)  # type: ignore[arg-type]  # nobody asks for them any more
        made.__dict__.update(kept)  # where `cached_property` looks
        return made

    def _repr_png_(self) -> bytes:
        """The overlay, for notebooks."""
        return cv2.imencode(".png", self.overlay())[1].tobytes()

    def _repr_html_(self) -> str:
        height, width = self.ids.shape
        return image_html(self._repr_png_(), f"{width} x {height} pixels, {len(self.stats())} classes")


def output_path(folder: str | Path, stem: str, kind: str) -> Path:
    """Where `Prediction.save` puts the output `kind` of the image called `stem`."""
    return Path(folder, f"{stem}_{kind}{_SUFFIX.get(kind, '.png')}")


def check_outputs(kinds: Sequence[str], classes: ClassList | None = None, known: Collection[str] = OUTPUTS) -> None:
    """Raises ConfigError if one of `kinds` is not `known`, none is named, or one makes no sense for `classes`."""
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        wanted = f"wanted some of {', '.join(known)}"
        what = "no such output" if unknown else "no output is named"
        raise ConfigError(what, where=",".join(unknown)[:60], why=wanted, hint="Correct --save.")
    if "labelids" in kinds and classes is not None and not classes.cityscapes:
        raise ConfigError("labelids cannot be written", why="this model's classes are not those of Cityscapes")
