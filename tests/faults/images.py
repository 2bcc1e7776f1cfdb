"""Damaged images: cuts, flips and splices of every format; what has no checksum is told apart honestly."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import cv2
import numpy as np

from dgmn2cli.data.files import SUFFIXES, find_files
from dgmn2cli.data.images import read_image, read_label
from faults.verdicts import RIGHT, UNSEEABLE, Faults, Kind, Violation, flipped, judged, spliced


def encoded() -> dict[str, bytes]:
    """An image in each format."""
    rng = np.random.default_rng(3)
    image = cv2.resize(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8), (97, 65), interpolation=cv2.INTER_CUBIC)
    deep = image.astype(np.uint16) * 257
    made = {
        "png": (".png", image, []), "gray png": (".png", image[..., 0], []), "deep png": (".png", deep, []),
        "1-bit png": (".png", (image[..., 0] > 99).astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1]),
        "jpeg": (".jpg", image, []), "progressive jpeg": (".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        "restarting jpeg": (".jpg", image, [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]),
        "gray jpeg": (".jpg", image[..., 0], []),
        "webp": (".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 80]), "bmp": (".bmp", image, []),
    }  # fmt: skip
    return {name: cv2.imencode(*parts)[1].tobytes() for name, parts in made.items()}


def damaged_images(rng: random.Random, folder: Path, count: int) -> Faults:
    """Every cut and all damage to a PNG is refused or harmless; other formats decode whole, or are refused."""
    files, target = encoded(), folder / "damaged"
    expected = {name: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for name, data in files.items()}
    for index in range(count):
        name, kind = rng.choice(sorted(files)), rng.choice(("cut", "flip", "flips", "splice"))
        data = files[name]
        damaged = {
            "cut": lambda data=data: data[: rng.randrange(len(data))],
            "flip": lambda data=data: flipped(data, rng),
            "flips": lambda data=data: flipped(data, rng, 12),
            "splice": lambda data=data: spliced(data, rng),
        }[kind]()

        def judge(damaged: bytes = damaged, name: str = name, kind: str = kind) -> str:
            target.write_bytes(damaged)
            seeable = kind == "cut" or "png" in name
            return judged(
                lambda: read_image(target), {6}, lambda image: np.array_equal(image, expected[name]),
                "" if seeable else UNSEEABLE,
            )  # fmt: skip

        yield f"{index} {name} {kind}", judge


def labels(rng: random.Random, folder: Path, count: int) -> Faults:
    """Damaged label maps are refused, or hold the right ids."""
    ids = np.random.default_rng(4).integers(0, 19, (40, 60), dtype=np.uint8)
    data, target = cv2.imencode(".png", ids)[1].tobytes(), folder / "label.png"
    for index in range(count):
        damaged = rng.choice((data[: rng.randrange(len(data))], flipped(data, rng), spliced(data, rng)))

        def judge(damaged: bytes = damaged) -> str:
            target.write_bytes(damaged)
            return judged(lambda: read_label(target), {6}, lambda label: np.array_equal(label, ids))

        yield f"{index}", judge


LITTER = ("._1.jpg", "Thumbs.db", ".hidden/2.png", "__MACOSX/3.jpg", "notes.txt", "4.jpg.part")


def _grown(rng: random.Random, root: Path, store: Path) -> set[str]:
    """Fills `root` as people do; the names, in composed form, that a search must find."""
    wanted: set[str] = set()
    folders = [root / "a", root / "b" / "c", root / "x.png", root]
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(rng.randrange(3)):
            name = f"{index}{number}ü{rng.choice(SUFFIXES)}"
            name = unicodedata.normalize(rng.choice(("NFC", "NFD")), rng.choice((name, name.upper())))
            (folder / name).write_bytes(b"")
            wanted.add(unicodedata.normalize("NFC", (folder / name).relative_to(root).as_posix()))
        for name in rng.sample(
            ("._1.jpg", "Thumbs.db", ".hidden/2.png", "__MACOSX/3.jpg", "notes.txt", "4.jpg.part"), 3
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"")
    store.mkdir()
    (store / "5.jpg").write_bytes(b"")
    for number in range(rng.randrange(3)):
        folder = rng.choice(folders)
        (folder / f"link{number}").symlink_to(store)
        wanted.add((folder / f"link{number}" / "5.jpg").relative_to(root).as_posix())
    rng.choice(folders).joinpath("circle").symlink_to(root)
    return wanted


def kept_folders(rng: random.Random, folder: Path, count: int) -> Faults:
    """A search finds the images of a folder as people keep it, each once, and counts what it leaves out."""
    for index in range(count):

        def judge(index: int = index) -> str:
            root = folder / f"{index}"
            wanted = _grown(rng, root, folder / f"store{index}")
            found = find_files(root)
            names = [unicodedata.normalize("NFC", path.relative_to(root).as_posix()) for path in found.files]
            if sorted(names) != sorted(wanted) or not any("circle" in note for note in found.notes):
                raise Violation(f"found {names}, wanted {sorted(wanted)}; {found.notes}")
            return RIGHT

        yield f"{index}", judge


KINDS = (
    Kind("damaged image", damaged_images, 3000, 150),
    Kind("damaged label map", labels, 500, 40),
    Kind("folder as people keep it", kept_folders, 300, 20),
)
