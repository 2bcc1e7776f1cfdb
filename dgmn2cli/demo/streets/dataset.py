"""Synthetic data sets: which scenes a split has, and the Cityscapes tree they are written to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dgmn2cli.data.cityscapes import (
    CLASSES,
    IMAGE_SUFFIX,
    LABEL_IDS_SUFFIX,
    LABELS,
    TRAIN_ID_OF_LABEL_ID,
    TRAIN_IDS_SUFFIX,
)
from dgmn2cli.data.folder import DESCRIPTION, SPLIT, id_map
from dgmn2cli.data.images import write_png
from dgmn2cli.data.layout import ANY
from dgmn2cli.data.preset import Preset, stored_ids
from dgmn2cli.demo.streets.scene import LARGE, OPTIONAL, Scene, draw_scene
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import atomic_write, check_folder

CITIES = {"train": ("nordhafen", "lindental", "steinbruck"), "val": ("seefeld",)}
SMALLEST_SIDE, LARGEST_SIDE = 64, 8192
MOST_IMAGES = 100_000
DRAWN = "drawn"  # the folder that stands for any one
JPEG_QUALITY = 98
_TRIES = 12
_SHOWN = 0.0006  # share of the image from which a class counts as shown
_ALWAYS = tuple(name for name in CLASSES if name not in OPTIONAL and name != "rider")
_COLORS = np.zeros((256, 3), np.uint8)
for _label in LABELS:
    _COLORS[_label.id] = _label.colour[::-1]


@dataclass(frozen=True)
class SynthReport:
    """What was written: the root, the images per split, their size, and the classes each split shows."""

    root: Path
    size: tuple[int, int]
    seed: int
    images: dict[str, int]
    classes: dict[str, tuple[str, ...]]


def wanted_classes(index: int, count: int, rng: np.random.RandomState) -> set[str]:
    """The optional classes that scene `index` of `count` must show; over a split every one is asked for.

    Three scenes in a row ask for each large vehicle once; other classes are in most scenes. A split of one or two
    scenes asks them for all.
    """
    rounds = min(count, len(LARGE))
    wanted = {name for i, name in enumerate(LARGE) if i % rounds == index % rounds}
    for i, name in enumerate(name for name in OPTIONAL if name not in LARGE):
        if i % rounds == index % rounds or rng.randint(5) < 3:
            wanted.add(name)
    return wanted


def make_scene(seed: int, split: str, index: int, count: int, size: tuple[int, int]) -> Scene:
    """Scene `index` of the `count` of a split; the same arguments give the same bytes.

    Scenes are drawn again where something near hides a class that the scene must show; after some tries the one that
    shows most is taken.

    Args:
        size: (width, height) in pixels.
    """
    best, most = None, -1
    for attempt in range(_TRIES):
        key = [seed, sorted(CITIES).index(split), index, attempt]
        rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))
        wanted = wanted_classes(index, count, np.random.RandomState(seed % 2**32 ^ index))
        scene = draw_scene(rng, size, wanted)
        shown = shown_classes(scene)
        required = {*wanted, *_ALWAYS} | ({"rider"} if wanted & {"motorcycle", "bicycle"} else set())
        if len(required & shown) > most:
            best, most = scene, len(required & shown)
        if required <= shown:
            break
    assert best is not None
    return best


def shown_classes(scene: Scene) -> set[str]:
    """The names of the classes that have a noticeable part of the image."""
    ids = TRAIN_ID_OF_LABEL_ID[scene.ids]
    counts = np.bincount(ids.ravel(), minlength=256)[: len(CLASSES)]
    return {CLASSES[i] for i in np.flatnonzero(counts > max(4, _SHOWN * ids.size))}


def make_dataset(
    root: str | Path,
    *,
    train: int,
    val: int,
    size: tuple[int, int] = (512, 256),
    seed: int = 0,
    workers: int = 2,
    step: Callable[[], object] = lambda: None,
    layout: Preset | None = None,
) -> SynthReport:
    """Writes synthetic streets as a Cityscapes tree: images, label ids, training ids, instances, colours.

    Args:
        root: the folder; it must not hold a data set yet.
        train, val: images per split.
        size: (width, height) in pixels.
        seed: the same one gives the same files.
        workers: threads.
        step: called after each scene.
        layout: write images and label maps as this known data set has them, in place of a Cityscapes tree; its last
            split takes the place of val, all others share the rest.

    Raises:
        ConfigError: an impossible size, number or seed.
        DataError: there is a data set already.
        ResourceError: a file cannot be written.
    """
    root = Path(root)
    _check(root, train, val, size, seed, layout)
    stored = stored_ids(id_map(layout.said), len(CLASSES)) if layout else None
    shown: dict[str, set[str]] = {"train": set(), "val": set()}
    jobs = [(split, i, n) for split, n in (("train", train), ("val", val)) for i in range(n)]

    def work(job: tuple[str, int, int]) -> tuple[str, set[str]]:
        split, index, count = job
        scene = make_scene(seed, split, index, count, size)
        if layout is None or stored is None:
            write_scene(root, split, index, scene)
        else:
            write_in_layout(root, layout, stored, split, index, scene)
        return split, shown_classes(scene)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for split, names in pool.map(work, jobs):
            shown[split] |= names
            step()
    classes = {split: tuple(name for name in CLASSES if name in found) for split, found in shown.items()}
    return SynthReport(root, size, seed, {"train": train, "val": val}, classes)


def write_scene(root: Path, split: str, index: int, scene: Scene) -> None:
    """The five files of one scene; the image itself last, so that a pair is never found without its labels."""
    cities = CITIES[split]
    city = cities[index % len(cities)]
    stem = f"{city}_{index // len(cities):06d}_000019"
    labels = root / "gtFine" / split / city
    write_png(labels / (stem + LABEL_IDS_SUFFIX), scene.ids)
    write_png(labels / (stem + TRAIN_IDS_SUFFIX), TRAIN_ID_OF_LABEL_ID[scene.ids])
    write_png(labels / f"{stem}_gtFine_instanceIds.png", scene.instances)
    write_png(labels / f"{stem}_gtFine_color.png", _COLORS[scene.ids])
    write_png(root / "leftImg8bit" / split / city / (stem + IMAGE_SUFFIX), scene.image)


def write_in_layout(root: Path, layout: Preset, stored: np.ndarray, split: str, index: int, scene: Scene) -> None:
    """One scene as a known data set would have it: its label map, then its image.

    Args:
        stored: what is stored for each training id, as `stored_ids` gives it.
    """
    said, name = layout.said, f"{CITIES[split][index % len(CITIES[split])]}_{index:06d}"
    splits = said.splits[:1] if split == "train" else said.splits[-1:]
    folders = [root / folder.replace(SPLIT, splits[0]).replace(ANY, DRAWN) for folder in (said.images, said.labels)]
    ids = stored[TRAIN_ID_OF_LABEL_ID[scene.ids]]
    written = ids if ids.max() > 255 else ids.astype(np.uint8)
    write_png(folders[1] / f"{said.label_prefix}{name}{said.label_suffix}", written)
    image = folders[0] / f"{said.image_prefix}{name}{said.image_suffix or '.png'}"
    if image.suffix == ".jpg":
        atomic_write(image, cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes())
    else:
        write_png(image, scene.image)


def _check(root: Path, train: int, val: int, size: tuple[int, int], seed: int, layout: Preset | None) -> None:
    what = "cannot make the synthetic data set"
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in size):
        why = f"the size is {size[0]}x{size[1]}, and each side must be {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
        raise ConfigError(what, where=root, why=why)
    if not (1 <= train <= MOST_IMAGES and 1 <= val <= MOST_IMAGES):
        why = f"{train} and {val} images are asked for train and val, and each must be 1 to {MOST_IMAGES}"
        hint = "Ask for 2 or more --images, and let --val be fewer of them."
        raise ConfigError(what, where=root, why=why, hint=hint)
    if not 0 <= seed < 1 << 63:
        raise ConfigError(what, where=root, why=f"the seed {seed} is not between 0 and 2^63")
    check_folder(root)
    tops: tuple[str, ...] = ("leftImg8bit", "gtFine")
    if layout is not None:
        folders = [
            folder.replace(SPLIT, split)
            for folder in (layout.said.images, layout.said.labels)
            for split in layout.said.splits
        ]
        tops = tuple(dict.fromkeys(Path(folder).parts[0] for folder in folders))
    taken = [name for name in (*tops, DESCRIPTION) if (root / name).exists()]
    if taken:
        hint = "Name another folder, or remove it."
        raise DataError(what, where=root, why=f"it holds {' and '.join(taken)} already", hint=hint)
