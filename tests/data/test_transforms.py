"""The transforms against the published system's arrays, bit for bit, driven by its logged draws."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmn2cli.config import AugmentConfig
from dgmn2cli.data.images import read_image
from dgmn2cli.data.transforms import (
    Augmentation,
    Sample,
    network_input,
    normalize,
    resize_image,
    scaled,
    target_size,
)

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE = read_image(GOLDEN / "slide" / "small_300x420.png")
TRAIN = json.loads((GOLDEN / "trainpipe" / "index.json").read_text())["cases"]
ARRAYS = np.load(GOLDEN / "trainpipe" / "trainpipe.npz")
LABEL = ARRAYS["label_in"]
AUGMENT = Augmentation(AugmentConfig(scale=(421, 301), crop=129))


class Replay:
    """Gives the logged draws back, and checks that each is asked for as the published system did."""

    def __init__(self, draws: list[list[Any]]) -> None:
        self.left = list(draws)

    def _next(self, name: str, *args: float) -> float:
        wanted, wanted_args, value = self.left.pop(0)
        assert (name, list(args)) == (wanted, wanted_args)
        return value

    def random_sample(self) -> float:
        return self._next("random_sample")

    def rand(self) -> float:
        return self._next("rand")

    def uniform(self, low: float, high: float) -> float:
        return self._next("uniform", low, high)

    def randint(self, low: int, high: int | None = None) -> int:
        return int(self._next("randint", low) if high is None else self._next("randint", low, high))


def crc(array: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"


def run_case(name: str, draws: Any) -> tuple[np.ndarray, np.ndarray]:
    sample = Sample(IMAGE, LABEL)
    if name.startswith("full"):
        return AUGMENT(sample, draws)
    if name.startswith("photo"):
        return AUGMENT.distort(sample.image, draws), sample.label
    for step in (AUGMENT.scale, AUGMENT.crop, AUGMENT.flip):
        sample = step(sample, draws)
    image, label = np.zeros((129, 129, 3), np.uint8), np.full((129, 129), 255, np.uint8)  # the uint8 padding of "geom"
    height, width = sample.label.shape
    image[:height, :width], label[:height, :width] = sample.image, sample.label
    return image, label


@pytest.mark.parametrize("name", TRAIN)
def test_training_transforms_reproduce_the_published_arrays(name: str) -> None:
    case, replay = TRAIN[name], Replay(TRAIN[name]["draws"])
    image, label = run_case(name, replay)
    assert not replay.left
    assert list(image.shape) == case["img_shape"]
    assert str(image.dtype) == case["img_dtype"]
    stored = ARRAYS[f"{name}_img"]
    sub = image[:, ::4, ::4] if name.startswith("full") else image[::2, ::2]
    np.testing.assert_array_equal(sub, stored)
    assert crc(image) == case["img_crc32"]
    assert label.dtype == np.uint8
    assert crc(label) == case["seg_crc32"]


@pytest.mark.parametrize("name", TRAIN)
def test_a_seeded_numpy_generator_draws_the_same(name: str) -> None:
    seed = int("".join(c for c in name if c.isdigit()))
    image, label = run_case(name, np.random.RandomState(seed))
    assert (crc(image), crc(label)) == (TRAIN[name]["img_crc32"], TRAIN[name]["seg_crc32"])


def test_all_training_cases_are_there() -> None:
    assert len(TRAIN) == 24
    assert crc(LABEL) == TRAIN["photo0"]["seg_crc32"]


@pytest.mark.parametrize("case", ["pup_tiny_small_ss_c129", "pup_tiny_small_msflip_c129"])
def test_network_inputs_equal_the_published_ones(case: str) -> None:
    facts = json.loads((GOLDEN / "slide" / "index.json").read_text())[case]
    arrays = np.load(GOLDEN / "slide" / f"{case}.npz")
    ratios = facts["ratios"] or [1.0]
    flips = (False, True) if facts["flip"] else (False,)
    views = [(ratio, flip) for ratio in ratios for flip in flips]
    assert len(views) == len(facts["per_inference"]) == (12 if facts["flip"] else 1)
    for index, (ratio, flip) in enumerate(views):
        size = target_size(*IMAGE.shape[:2], scaled(tuple(facts["img_scale"]), ratio))
        got = network_input(resize_image(IMAGE, size), flip=flip)
        assert [1, *got.shape] == facts["per_inference"][index]["img"]
        stride = int(arrays[f"input{index}_stride"])
        np.testing.assert_array_equal(got[:, ::stride, ::stride], arrays[f"input{index}"])


def test_target_sizes_of_a_cityscapes_image() -> None:
    sizes = [target_size(1024, 2048, scaled((2049, 1025), r)) for r in (0.5, 0.75, 1, 1.25, 1.5, 1.75)]
    assert sizes == [(512, 1024), (768, 1536), (1025, 2049), (1281, 2561), (1537, 3073), (1793, 3585)]
    assert target_size(5000, 1, (2049, 1025)) == (2049, 1)  # the published formula gives a side of 0
    assert target_size(2048, 1024, (1025, 2049)) == (2049, 1025)


def test_a_halved_image_is_a_box_mean() -> None:
    rounded = (IMAGE.reshape(150, 2, 210, 2, 3).astype(int).sum(axis=(1, 3)) + 2) // 4
    np.testing.assert_array_equal(resize_image(IMAGE, (150, 210)), rounded)


def test_normalised_values_and_order() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[..., 2], image[..., 1], image[..., 0] = 255, 128, 7  # red, green, blue
    got = normalize(image)
    assert got.shape == (3, 2, 3)
    assert got.dtype == np.float32
    expected = [(255 - 123.675) / 58.395, (128 - 116.28) / 57.12, (7 - 103.53) / 57.375]
    np.testing.assert_allclose(got[:, 1, 2], expected, rtol=1e-6)


def test_a_small_image_is_padded_with_the_mean_colour_and_ignored() -> None:
    sample = Sample(IMAGE[:20, :30], LABEL[:20, :30])
    augment = Augmentation(AugmentConfig(crop=40))
    image, label = augment.finish(augment.crop(sample, np.random.RandomState(0)))
    assert image.shape == (3, 40, 40)
    assert (image[:, 20:] == 0).all()
    assert (image[:, :, 30:] == 0).all()
    assert (label[20:] == 255).all()
    assert (label[:, 30:] == 255).all()
    np.testing.assert_array_equal(label[:20, :30], LABEL[:20, :30])


def test_the_crop_rule() -> None:
    label = np.zeros((10, 10), np.uint8)
    crop = Augmentation(AugmentConfig(crop=4)).crop
    draws: list[list[Any]] = []
    for _ in range(11):  # ten failures, and the eleventh draw is taken unchecked
        draws += [["randint", [0, 7], 3], ["randint", [0, 7], 5]]
    replay = Replay(draws)
    assert crop(Sample(np.dstack([label] * 3), label), replay).label.shape == (4, 4)
    assert not replay.left
    label[0, :4] = 1  # exactly a quarter of the window at (0, 0): 12/16 is not under 75 %
    replay = Replay(
        [["randint", [0, 7], 0], ["randint", [0, 7], 0], ["randint", [0, 7], 1], ["randint", [0, 7], 1]] * 6
    )
    crop(Sample(np.dstack([label] * 3), label), replay)
    assert len(replay.left) == 2
    label[1, 0] = 1
    replay = Replay([["randint", [0, 7], 0], ["randint", [0, 7], 0]])
    assert (crop(Sample(np.dstack([label] * 3), label), replay).label == label[:4, :4]).all()
    label[:4, :4] = 255  # only ignored pixels never pass
    label[9, 9] = 4
    replay = Replay([["randint", [0, 7], 0], ["randint", [0, 7], 0]] * 11)
    crop(Sample(np.dstack([label] * 3), label), replay)
    assert not replay.left


def test_inputs_are_left_as_they_are() -> None:
    image, label = IMAGE.copy(), LABEL.copy()
    AUGMENT(Sample(image, label), np.random.RandomState(2))
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(label, LABEL)
