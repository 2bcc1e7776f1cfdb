"""What makes a report verifiable: its images' records, hashes of a few files, a digest of the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.evaluate.analysis.measure import ImageRecord, TemperatureCounts
from dgmn2cli.files import hash_file, to_json

SAMPLED, SEED = 5, 0  # images that are run again


@dataclass(frozen=True)
class SampledImage:
    """An image that `verify` runs again, with the hashes of its files."""

    name: str
    image_sha256: str
    label_sha256: str


@dataclass(frozen=True)
class Certificate:
    """What the numbers of a report can be had again from."""

    classes: tuple[str, ...] = ()  # names, in the order of the confusion matrix
    categories: tuple[str, ...] = ()  # of the classes; empty where there are none
    fingerprint: str = ""  # over the classes and all images' names, sizes and label hashes
    seed: int = SEED  # the sample was drawn with
    sample: tuple[SampledImage, ...] = ()  # images to run again
    records: tuple[ImageRecord, ...] = ()  # of every image, in the data set's order
    temperatures: dict[str, str] | None = None  # see `TemperatureCounts`
    digest: str = ""  # SHA-256 of the report's JSON with this empty


def certify(data: SegmentationSet, records: Sequence[ImageRecord], temperatures: TemperatureCounts) -> Certificate:
    """The certificate of an evaluation; the files of the sampled images are read.

    Raises:
        ResourceError: one is gone.
    """
    return Certificate(
        classes=data.classes,
        categories=data.categories,
        fingerprint=fingerprint_of(data.classes, records),
        sample=sample(data, len(records)),
        records=tuple(records),
        temperatures=temperatures.to_plain() if temperatures.losses.any() else None,
    )


def sample(data: SegmentationSet, count: int, seed: int = SEED) -> tuple[SampledImage, ...]:
    """The images to run again of the first `count`; their files are read, a ResourceError where one is gone."""
    pairs = [data.pairs[place] for place in sampled(count, seed)]
    return tuple(SampledImage(p.name, hash_file(p.image), hash_file(p.label)) for p in pairs if p.label is not None)


def sampled(count: int, seed: int = SEED) -> list[int]:
    """Places of the images to run again, of `count`."""
    return sorted(map(int, np.random.default_rng(seed).choice(count, min(SAMPLED, count), replace=False)))


def fingerprint_of(classes: Sequence[str], records: Sequence[ImageRecord]) -> str:
    """SHA-256 over the classes and all images' names, sizes and label hashes: what two reports must share."""
    content = [list(classes), [[record.name, list(record.size), record.label_hash] for record in records]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def digest_of(report: object) -> str:
    """SHA-256 of a report, a dataclass or what JSON made of it, as if its certificate's digest were empty."""
    plain = json.loads(to_json(report))
    plain["certificate"]["digest"] = ""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
