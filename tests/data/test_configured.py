"""A data set that a configuration names or describes: folders, stored values, classes and colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgmn2cli.config import DataConfig
from dgmn2cli.data.catalog import described_ids, open_configured, split_name
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import ConfigError, DataError

STORED = np.array([[0, 1, 2, 3], [2, 7, 1, 255]], np.uint8)


def make(root: Path, images: str, labels: str, stored: np.ndarray = STORED) -> None:
    (root / images / "sub").mkdir(parents=True)
    Image.fromarray(np.zeros((*stored.shape, 3), np.uint8)).save(root / images / "sub" / "a.jpg")
    write_png(root / labels / "sub" / "a_mask.png", stored)


def described(root: Path, **settings: object) -> DataConfig:
    values = {
        "kind": "folder", "root": str(root), "classes": ("x", "y", "z"), "train_images": "t/i", "train_labels": "t/{l}",
        "val_images": "v/i", "val_labels": "v/l", "label_suffix": "_mask.png", "id_map": ((7, 0), (3, 255)), **settings,
    }  # fmt: skip
    return DataConfig(**values)  # type: ignore[arg-type]


def test_folders_described_by_the_configuration(tmp_path: Path) -> None:
    make(tmp_path, "t/i", "t/{l}")
    make(tmp_path, "v/i", "v/l", STORED.T.copy())
    settings = described(tmp_path, palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    train, val = (open_configured(settings, split_name(settings, part)) for part in ("train", "val"))
    assert [(pair.name, pair.image.name) for pair in train.pairs] == [("sub/a", "a.jpg")]
    np.testing.assert_array_equal(train.read_label(0), [[0, 1, 2, 255], [2, 0, 1, 255]])
    np.testing.assert_array_equal(val.read_label(0), train.read_label(0).T)
    assert train.classes == val.classes == ("x", "y", "z")
    np.testing.assert_array_equal(train.palette, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert len(np.unique(open_configured(described(tmp_path), "val").palette, axis=0)) == 3
    other = tmp_path / "other"
    make(other, "v/i", "v/l")
    assert open_configured(settings, "val", other).pairs[0].image.is_relative_to(other)


@pytest.mark.parametrize(
    ("settings", "meaning"),
    [
        ({}, {0: 0, 1: 1, 2: 2, 255: 255, 3: 255, 7: 0}),
        ({"id_map": (), "reduce_zero_label": True}, {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}),
        ({"id_map": ((9, 0), (8, 1)), "reduce_zero_label": True}, {0: 255, 1: 0, 2: 1, 3: 2, 9: 255, 8: 0, 255: 255}),
        (
            {"id_map": ((300, 1), (65535, 2)), "ignore_index": 1000},
            {0: 0, 1: 1, 2: 2, 255: 255, 300: 1, 1000: 255, 65535: 2},
        ),
        (
            {"id_map": (), "ignore_index": 1000, "reduce_zero_label": True},
            {0: 255, 1: 0, 2: 1, 3: 2, 255: 255, 1001: 255},
        ),
        ({"id_map": (), "ignore_index": 1}, {0: 0, 1: 255, 2: 2, 255: 255}),
        ({"id_map": (), "ignore_index": 200}, {0: 0, 1: 1, 2: 2, 200: 255, 255: 255}),
    ],
)
def test_what_stored_values_mean(tmp_path: Path, settings: dict[str, object], meaning: dict[int, int]) -> None:
    ids = described_ids(described(tmp_path, **settings))
    assert {stored: int(ids.table[stored]) for stored in np.flatnonzero(ids.legal).tolist()} == meaning


def test_faults_of_a_described_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_configured(described(tmp_path), "train")
    make(tmp_path, "t/i", "t/{l}")
    with pytest.raises(DataError, match=r"holds 3, 7, which are not among the class ids.*data\.id_map"):
        open_configured(described(tmp_path, id_map=()), "train").read_label(0)
    with pytest.raises(DataError, match="describes train and val, not 'test'"):
        open_configured(described(tmp_path), "test")
    (tmp_path / "t/{l}/sub/a_mask.png").unlink()
    with pytest.raises(DataError, match="1 of 1 images have no label map"):
        open_configured(described(tmp_path), "train")
    with pytest.raises(DataError, match=r"neither data.classes nor a dataset.toml"):
        open_configured(DataConfig(kind="folder", root=str(tmp_path)), "train")


def test_a_dataset_toml_with_settings_of_the_configuration(tmp_path: Path) -> None:
    make(tmp_path, "images/all", "labels/all", np.minimum(STORED, 2))
    text = 'classes = ["x", "y", "z"]\nlabel_suffix = "_mask.png"\nimages = "images/{split}"\nlabels = "labels/{split}"'
    (tmp_path / "dataset.toml").write_text(text)
    root = str(tmp_path)
    for kind in ("folder", "cityscapes"):
        settings = DataConfig(kind=kind, root=root, train_split="all")
        assert split_name(settings, "train") == "all"
        np.testing.assert_array_equal(open_configured(settings, "all").read_label(0), [[0, 1, 2, 2], [2, 2, 1, 2]])
    ignoring = open_configured(DataConfig(root=root, ignore_index=2), "all")
    np.testing.assert_array_equal(ignoring.read_label(0), [[0, 1, 255, 255], [255, 255, 1, 255]])
    colours = ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    np.testing.assert_array_equal(open_configured(DataConfig(root=root, palette=colours), "all").palette, colours)
    with pytest.raises(ConfigError, match="2 colours for 3 classes"):
        open_configured(DataConfig(root=root, palette=colours[:2]), "all")
    with pytest.raises(ConfigError, match=r"data\.classes is not") as caught:
        open_configured(DataConfig(root=root, classes=("x", "q", "z", "w")), "all")
    assert caught.value.faults == (
        "class 1: data.classes says q, the data set y", "class 3: data.classes says w, the data set none",
    )  # fmt: skip
