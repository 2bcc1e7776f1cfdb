"""The check of a submission before it is sent: names, count, sizes, one channel, legal ids; every fault named."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgmn2cli.data import png
from dgmn2cli.data.cityscapes import CLASSES, LABEL_ID_OF_TRAIN_ID, LABELS
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.decoding import decode_ids
from dgmn2cli.data.formats import Malformed, sniff
from dgmn2cli.data.images import image_header
from dgmn2cli.errors import CheckFailed, ResourceError
from dgmn2cli.files import open_regular
from dgmn2cli.observer import Observer, Silent

TEST_CITIES = {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398}
OFFICIAL_SIZE = (2048, 1024)
MEMBER_LIMIT = 64 << 20  # bytes of one file, unpacked; a label map of the official size has about 50,000
MOST_MEMBERS = 100_000
_EVALUATED = {int(LABEL_ID_OF_TRAIN_ID[i]) for i in range(len(CLASSES))}
_LEGAL = {label.id for label in LABELS}
_NAME = re.compile(r"([A-Za-z-]+)_[0-9]{6}_[0-9]{6}(?=[_.])")


@dataclass(frozen=True)
class Expected:
    """What a submission must hold."""

    # (width, height) by image name; empty where the images are not at hand, and then the official numbers of images per
    # city and their official size count
    sizes: Mapping[str, tuple[int, int]]
    against: str  # what that is, in words

    @property
    def count(self) -> int:
        """Images in all."""
        return len(self.sizes) or sum(TEST_CITIES.values())


OFFICIAL = Expected({}, "the official numbers of test images")


@dataclass(frozen=True)
class ZipReport:
    """What the check of a zip found; a submission without faults can be sent."""

    path: str
    bytes: int
    files: int
    expected: int
    against: str
    faults: tuple[str, ...]


def expected_of(data: SegmentationSet) -> Expected:
    """What a submission for `data` must hold."""
    headers = {pair.name: image_header(pair.image) for pair in data.pairs}
    sizes = {name: (header.width, header.height) for name, header in headers.items()}
    return Expected(sizes, f"the images of split {data.split} of {data.root}")


def validate_zip(path: Path, expected: Expected, observer: Observer = Silent()) -> ZipReport:
    """Looks at every file of a zip: names, count, sizes, one channel of 8 bits, legal ids. Nothing is unpacked to disk.

    Raises:
        ResourceError: there is no such file, or it may not be read.
    """
    what, faults, names = "cannot read the zip", list[str](), list[str]()
    with open_regular(path, what, kind=ResourceError) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) > MOST_MEMBERS:
                    faults.append(f"{len(members):,} files, and {expected.count:,} are wanted")
                    members = []
                observer.begin("checking the zip", len(members))
                seen: Counter[int] = Counter()
                for member in members:
                    names.append(image_name(member.filename))
                    fault = _member_fault(archive, member, names[-1], expected, seen)
                    faults += [f"{member.filename}: {fault}"] if fault else []
                    observer.advance()
                if seen and max(seen) < len(CLASSES) and set(seen) - _EVALUATED:
                    why = "these look like training ids, and labelIds are wanted"
                    faults.append(f"no file holds an id above {max(seen)}: {why}")
        except zipfile.BadZipFile as error:
            faults.append(f"it is no zip file, or a damaged one ({error})")
        except OSError as error:
            raise ResourceError(what, where=path, why=error.strerror or str(error)) from error
    faults += _count_faults([name for name in names if name], expected)
    size = path.stat().st_size
    return ZipReport(str(path), size, len(names), expected.count, expected.against, tuple(faults))


def require_valid(report: ZipReport) -> None:
    """Raises CheckFailed, with every fault, where the zip has any."""
    if report.faults:
        count = len(report.faults)
        raise CheckFailed(
            "the submission is not valid",
            where=report.path,
            faults=report.faults,
            why=f"{count} fault{'s' * (count != 1)}, checked against {report.against}",
        )


def _member_fault(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, expected: Expected, seen: Counter[int]
) -> str:
    """What is wrong with one file; its ids are added to `seen`."""
    if not name:
        return "the name is not CITY_123456_123456*.png"
    if expected.sizes and name not in expected.sizes:
        return "there is no such image"
    if not expected.sizes and name.split("_")[0] not in TEST_CITIES:
        return "it is of no test city"
    try:
        ids = _label_ids(_content(archive, member), expected.sizes.get(name, OFFICIAL_SIZE))
    except Malformed as error:
        return str(error)
    present = {int(value) for value in np.flatnonzero(np.bincount(ids.ravel(), minlength=256))}
    seen.update(present)
    wrong = sorted(present - _LEGAL)
    some = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    return f"it holds {some}, and labelIds are 0 to {max(_LEGAL)}" if wrong else ""


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & 1:
        raise Malformed("it is encrypted")
    try:
        with archive.open(member) as file:
            content = file.read(MEMBER_LIMIT + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: unknown compression, too
        raise Malformed(f"it cannot be unpacked ({error})") from error
    if len(content) > MEMBER_LIMIT:
        raise Malformed(f"it has more than {MEMBER_LIMIT:,} bytes")
    return content


def _label_ids(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 ids of a PNG that must have `size` (width, height), one channel and 8 bits; Malformed if not."""
    if not content or sniff(content) != "PNG":
        raise Malformed("it is no PNG")
    found = png.png_size(content)
    if found != size:
        raise Malformed(f"it is {found[0]}x{found[1]}, and {size[0]}x{size[1]} is wanted")
    image = png.parse_png(content)
    if image.color_type not in (png.GRAY, png.PALETTE) or image.depth != 8:
        raise Malformed("it is not an 8-bit image of one channel")
    return decode_ids(content, size[0] * size[1])


def _count_faults(names: Sequence[str], expected: Expected) -> Iterator[str]:
    """Images that are there twice or not at all."""
    counts = Counter(names)
    yield from (f"{name}: {count} files" for name, count in sorted(counts.items()) if count > 1)
    if expected.sizes:
        yield from (f"{name}: no file" for name in sorted(expected.sizes) if name not in counts)
        return
    cities = Counter(name.split("_")[0] for name in counts)
    for city, wanted in TEST_CITIES.items():
        if cities[city] != wanted:
            yield f"{city}: {cities[city]} images, and {wanted} are wanted"


def image_name(member: str) -> str:
    """CITY_123456_123456 of a file's name, any folder before it; empty if it does not start so, or is no PNG."""
    name = member.replace("\\", "/").rpartition("/")[2]
    match = _NAME.match(name)
    return match[0] if match is not None and name.lower().endswith(".png") else ""
