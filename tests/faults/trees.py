"""Random folders of images: links, circles, hidden files, odd names; each image is found once, or named as left out."""

from __future__ import annotations

import os
import random
import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from dgmn2cli.data.files import SUFFIXES
from dgmn2cli.data.folder import open_folder
from dgmn2cli.data.images import read_image
from dgmn2cli.errors import DataError
from dgmn2cli.inference.sources import find_images
from dgmn2cli.observer import Silent
from faults.verdicts import RIGHT, Faults, Kind, Violation, judged

LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir", ".ipynb_checkpoints", "._photo.jpg", ".x.png")
STEMS = (
    "b", "photo", "IMG 0001", "a.jpg", "x.tar", "-o", "#1", "@list", "*", "[a]", "~", "ä_größe", "é.e", "한국",
    "İi", "ß", "a\nb", "\x1b[31m", "\u202e", "\udcff\udce9", " lead", "trail ", "%s", "{split}", "0" * 200,
)  # fmt: skip
OTHERS = ("readme.txt", "a.json", "b.png.txt", "c", "d.pngx", "png", "e.png~", "f.mp4")
KINDS_OF_ENTRY = (
    *["image"] * 9, *["folder"] * 5, *["link"] * 4, *["file link", "other", "litter", "odd"] * 2
)  # fmt: skip
DESCRIPTION = 'classes = ["a", "b"]\nimages = "{}"\nlabels = "labels"\nlabel_suffix = "_L.png"\n'


@dataclass
class Tree:
    """What was made below a folder, by name: a subfolder, a link's aim, or what a file is (`image`, `broken`, `pipe`).

    Attributes:
        entries: the folder's content; the same object twice where a link leads to it.
    """

    entries: dict[str, Tree | str] = field(default_factory=dict)


def encoded() -> dict[str, bytes]:
    """A small image for each suffix."""
    image = np.random.default_rng(5).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    made = {}
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif", ".ppm", ".pgm"):
        good, data = cv2.imencode(suffix, image[..., 0] if suffix == ".pgm" else image)
        made[suffix] = data.tobytes() if good else b""
    alike = {"jpeg": ".jpg", "jpe": ".jpg", "jfif": ".jpg", "jif": ".jpg", "tif": ".tiff", "dib": ".bmp",
             "apng": ".png", "pnm": ".ppm"}  # fmt: skip
    return {name: data for name, data in made.items() if data} | {f".{new}": made[old] for new, old in alike.items()}


IMAGES = encoded()


def plant(
    chance: random.Random, folder: Path, depth: int, known: list[tuple[Path, Tree]], stems: list[str]
) -> Tree:  # fmt: skip
    """Fills a new folder at random, and says with what.

    Args:
        depth: levels of folders below it.
        known: the folders that links may lead to.
        stems: what names are made of.
    """
    folder.mkdir()
    tree = Tree()
    known.append((folder, tree))
    for _ in range(chance.choice((0, 1, 2, 4, 7))):
        kind = chance.choices(
            ("image", "folder", "other", "litter", "odd", "link", "file link"), (9, 5, 2, 2, 2, 4, 2)
        )[0]
        name = _name(chance, kind, stems)
        path = folder / name
        if os.path.lexists(path):
            continue
        if kind == "image" or (kind == "litter" and chance.random() < 0.7):
            path.write_bytes(IMAGES[path.suffix.lower()] if kind == "image" else IMAGES[".png"])
            tree.entries[name] = "image"
        elif kind == "other":
            path.write_bytes(b"text")
            tree.entries[name] = "other"
        elif kind == "odd":
            tree.entries[name] = _odd(chance, path)
        elif kind == "link":
            aim, content = chance.choice(known)
            os.symlink(chance.choice((aim, os.path.relpath(aim, folder))), path, target_is_directory=True)
            tree.entries[name] = content
        elif kind == "file link":
            aim = chance.choice(known)[0].parent / "outside" / "an image without a suffix"
            os.symlink(folder.parents[0] / "nowhere" if not aim.exists() else aim, path)
            tree.entries[name] = "image" if aim.exists() else "broken"
        elif depth:
            tree.entries[name] = plant(chance, path, depth - 1, known, stems)
    return tree


def _name(chance: random.Random, kind: str, stems: list[str]) -> str:
    if kind == "litter":
        return chance.choice(LITTER)
    if kind == "other":
        return chance.choice(OTHERS)
    stem = unicodedata.normalize(chance.choice(("NFC", "NFD")), chance.choice(stems))
    if kind in ("folder", "link") and chance.random() < 0.6:
        return stem if stem not in ("~",) else "tilde"
    suffix = chance.choice((".png", ".jpg", chance.choice(sorted(IMAGES))))
    return stem + chance.choice((suffix, suffix, suffix, suffix.upper(), suffix.title()))


def _odd(chance: random.Random, path: Path) -> str:
    """What bears an image's name and is none."""
    kind = chance.choice(("empty", "text", "pipe", "broken", "itself"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("broken", "itself"):
        os.symlink(path.name if kind == "itself" else "/nowhere/x.png", path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"<html>")
    return "broken"


def expected(tree: Tree, inside: str = "", above: tuple[int, ...] = ()) -> tuple[dict[str, str], Counter[str]]:
    """Which files a search must find, and how many entries it must leave out, by reason."""
    if id(tree) in above:
        return {}, Counter({"circle": 1})
    found: dict[str, str] = {}
    left: Counter[str] = Counter()
    for name, entry in tree.entries.items():
        named_like_image = name.lower().endswith(SUFFIXES)
        if name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "__macosx", "@eadir"):
            left["hidden"] += 1
        elif isinstance(entry, Tree):
            left["folder named"] += named_like_image
            more, out = expected(entry, os.path.join(inside, name), (*above, id(tree)))
            found, left = found | more, left + out
        elif named_like_image:
            found[os.path.join(inside, name)] = entry
        else:
            left["suffix"] += 1
    return found, left


class Listening(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def said(notes: list[str] | tuple[str, ...]) -> int:
    """How many entries the notes call left out."""
    return sum(int(count) for note in notes for count in re.findall(r": left out (\d+) \(", note))


def check_infer(root: Path, wanted: dict[str, str], left: int, chance: random.Random) -> None:
    """`infer`'s finder: the folder, or the folder and parts of it again, named otherwise."""
    listening = Listening()
    sources = [str(root)]
    again = [name for name in wanted if chance.random() < 0.3]
    for name in again:
        sources.append(chance.choice((str(root / name), os.path.relpath(root / name), f"{root}/./{name}")))
    chance.shuffle(sources)
    if not any((root / name).exists() for name in wanted):
        judged(lambda: find_images(sources, listening), {6}, lambda _: False)
        return
    images = find_images(sources, listening)
    if sorted(os.path.relpath(image.path, root) for image in images) != sorted(wanted):
        differ = {os.path.relpath(image.path, root) for image in images} ^ set(wanted)
        raise Violation(f"infer finds {len(images)} images, wanted {len(wanted)}; {sorted(differ)[:3]!a}")
    if said(listening.notes) != left:
        raise Violation(f"infer says {said(listening.notes)} are left out, wanted {left}: {listening.notes!a}"[:600])
    if len({image.name for image in images}) != len(images):
        often = Counter(image.name for image in images).most_common(1)
        raise Violation(f"two images have one name for their outputs: {often!a}")
    for image in images:
        kind = wanted[os.path.relpath(image.path, root)]
        outcome = judged(lambda image=image: read_image(image.path), {6}, lambda pixels: pixels.shape == (3, 4, 3))
        if (outcome == RIGHT) != (kind == "image"):
            raise Violation(f"{image.path!a} is {kind}, and reading it is {outcome}")


def check_data_set(root: Path, wanted: dict[str, str], left: int, chance: random.Random) -> None:
    """A data set of the same folder has the same images; each with its label map, in either Unicode form."""
    labels, description = root.parent / "labels", root.parent / "dataset.toml"
    description.write_text(DESCRIPTION.format(root.name))
    stems = {name: os.path.splitext(name)[0] for name in wanted}
    for stem in stems.values():
        form = chance.choice(("NFC", "NFD"))
        path = labels / f"{unicodedata.normalize(form, stem)}_L.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGES[".png"])
    labelled = bool(wanted) and chance.random() < 0.7
    try:
        data = open_folder(description, labels=labelled)
    except DataError:
        if wanted:
            raise
        return
    if sorted(os.path.relpath(pair.image, root) for pair in data.pairs) != sorted(wanted):
        raise Violation(f"the data set has {len(data.pairs)} images, wanted {len(wanted)}")
    if len({pair.name for pair in data.pairs}) != len(data.pairs):
        often = Counter(pair.name for pair in data.pairs).most_common(1)
        raise Violation(f"two pairs of the data set have one name: {often!a}")
    if labelled and not all(pair.label is not None and pair.label.is_file() for pair in data.pairs):
        raise Violation("a pair has no label map")
    if said(data.notes) != left:
        raise Violation(f"the data set says {said(data.notes)} are left out, wanted {left}: {data.notes!a}"[:600])


def trees(rng: random.Random, folder: Path, count: int) -> Faults:
    """As said above, for `infer` and for data sets."""
    for index in range(count):
        seed = rng.randrange(1 << 30)

        def judge(index: int = index, seed: int = seed) -> str:
            chance, top = random.Random(seed), folder / f"tree{index}"
            stems = [*chance.sample(STEMS, 4), "a", "a.png"]
            (top / "outside").mkdir(parents=True)
            (top / "outside" / "an image without a suffix").write_bytes(IMAGES[".png"])
            try:
                tree = plant(chance, top / "images", chance.choice((0, 2, 3, 5)), [], stems)
                wanted, left = expected(tree)
                check_infer(top / "images", wanted, left.total(), chance)
                check_data_set(top / "images", wanted, left.total(), chance)
            finally:
                shutil.rmtree(top)
            return RIGHT

        yield f"{index} seed {seed}", judge


KINDS = (Kind("finding files", trees, 1000, 40, patience=60),)
