"""Corrupted images: the same for a seed and a name, worse with each level, by ImageNet-C's figures."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dgmn2cli.data.cityscapes import open_cityscapes
from dgmn2cli.data.corruption import BLUR, JPEG, KINDS, NOISE, Corruption, plasma
from dgmn2cli.demo.streets.dataset import make_dataset

GRAY = np.full((96, 128, 3), 128, np.uint8)
RAMP = np.broadcast_to(np.linspace(0, 255, 128, dtype=np.uint8)[:, None], (96, 128, 3)).copy()


def made(kind: str, level: int, image: np.ndarray = RAMP, name: str = "a", seed: int = 0) -> np.ndarray:
    return Corruption(((kind, level),), seed)(image, name)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_ever_worse_and_draws_come_from_seed_and_name(kind: str) -> None:
    before = RAMP.copy()
    errors = [np.abs(made(kind, level).astype(int) - RAMP).mean() for level in range(1, 6)]
    assert np.array_equal(RAMP, before)
    assert errors == sorted(errors) or kind == "fog"  # fog is brighter or darker than what is behind it
    assert errors[0] > 0
    assert np.array_equal(made(kind, 3), made(kind, 3))
    assert made(kind, 3).dtype == np.uint8
    if kind in ("fog", "night", "noise"):
        assert not np.array_equal(made(kind, 3), made(kind, 3, name="b"))
        assert not np.array_equal(made(kind, 3), made(kind, 3, seed=1))


def test_imagenet_c_s_figures() -> None:
    assert (NOISE, BLUR, JPEG) == ((0.08, 0.12, 0.18, 0.26, 0.38), (1, 2, 3, 4, 6), (25, 18, 15, 10, 7))
    noisy = made("noise", 1, np.full((400, 400, 3), 128, np.uint8)).astype(float) / 255
    assert abs(noisy.std() - 0.08) < 0.002
    step = np.zeros((41, 401, 3), np.uint8)
    step[:, 200:] = 255
    edge = made("blur", 4, step)[20, :, 0].astype(float) / 255  # the derivative of it is the Gaussian
    density = np.diff(edge)
    place = np.arange(len(density))
    assert abs(np.sqrt((density * (place - (density * place).sum()) ** 2).sum()) - 4) < 0.1
    foggy = made("fog", 3, np.zeros((64, 64, 3), np.uint8))
    assert foggy.max() == 0  # black's own maximum scales it away, as there
    foggy = made("fog", 3, np.full((64, 64, 3), 255, np.uint8)).astype(float) / 255
    assert abs(foggy.min() - 1 / 3.5) < 0.01  # nothing added: 1 * 1 / (1 + 2.5)
    assert abs(foggy.max() - 1) < 0.01  # all of it: (1 + 2.5) / (1 + 2.5)


def test_clouds_fill_any_size_and_rough_ones_have_more_detail() -> None:
    for size in ((1, 1), (5, 300), (97, 64)):
        clouds = plasma(size, 2.0, np.random.default_rng(1))
        assert clouds.shape == size
        assert np.isfinite(clouds).all()
        assert 0 <= clouds.min() <= clouds.max() <= 1
    fine, coarse = (np.abs(np.diff(plasma((256, 256), decay, np.random.default_rng(1)))).mean() for decay in (1.4, 2.5))
    assert fine > 2 * coarse


def test_what_is_typed() -> None:
    found = Corruption.parse("fog:3, noise:1")
    assert (found.steps, str(found)) == ((("fog", 3), ("noise", 1)), "fog:3,noise:1")
    assert np.array_equal(found(RAMP, "a"), pickle.loads(pickle.dumps(found))(RAMP, "a"))
    for wrong in ("", "fog", "fog:0", "fog:6", "fog:x", "rain:1", "fog:3,", "fog:1.5"):
        with pytest.raises(ValueError, match=r"wanted 1 to 5|is none of"):
            Corruption.parse(wrong)


def test_a_data_set_reads_its_images_corrupted_and_its_labels_as_they_are(tmp_path: Path) -> None:
    make_dataset(tmp_path, train=1, val=1, size=(64, 64))
    data = open_cityscapes(tmp_path, "val")
    worse = replace(data, corruption=Corruption((("night", 5),)))
    clean, dark = data.read(0), worse.read(0)
    assert dark.image.mean() < 0.6 * clean.image.mean()
    assert np.array_equal(dark.label, clean.label)
    assert np.array_equal(dark.image, worse.corruption(clean.image, data.pairs[0].name))
