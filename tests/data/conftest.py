"""Small data sets in the two layouts, made for each test that asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.images import write_png

SIZE = (24, 40)


def scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label in training ids, all 19 and some ignored pixels."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(size[0] * size[1]) % 20).reshape(size).astype(np.uint8)
    label[label == 19] = 255
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8), label


@pytest.fixture
def make_cityscapes(tmp_path: Path) -> Callable[..., Path]:
    """Makes a tree with `count` pairs per split in two cities; `ids` is "labelTrainIds", "labelIds" or both."""

    def make(count: int = 4, ids: tuple[str, ...] = ("labelTrainIds",), splits: tuple[str, ...] = ("val",)) -> Path:
        root = tmp_path / "city"
        for split in splits:
            for i in range(count):
                city = ("ulm", "aachen")[i % 2]
                image, label = scene(100 * len(split) + i)
                name = f"{city}_{i:06d}_000019"
                write_png(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
                for kind in ids:
                    stored = label if kind == "labelTrainIds" else LABEL_ID_OF_TRAIN_ID[label]
                    write_png(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", stored)
        return root

    return make
