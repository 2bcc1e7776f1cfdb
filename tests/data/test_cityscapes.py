"""The Cityscapes layout and its tables, against the official ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dgmn2cli.data import cityscapes
from dgmn2cli.data.catalog import find_splits, open_dataset
from dgmn2cli.data.cityscapes import CATEGORY_OF_CLASS, CLASSES, LABEL_IDS, LABELS, PALETTE, open_cityscapes
from dgmn2cli.data.images import read_label, write_png
from dgmn2cli.errors import DataError


@pytest.mark.filterwarnings("ignore")
def test_the_tables_are_the_official_ones() -> None:
    official = importlib.import_module("cityscapesscripts.helpers.labels").labels
    known = {label.id: label for label in official if label.id >= 0}
    assert len(LABELS) == len(known) == 34
    for label in LABELS:
        other = known[label.id]
        wanted = (other.name, other.trainId, other.category, other.color)
        assert (label.name, label.train_id, label.category, label.colour) == wanted
    assert len(CLASSES) == len(PALETTE) == len(CATEGORY_OF_CLASS) == 19
    assert CLASSES[0] == "road"
    assert CLASSES[18] == "bicycle"
    trained = np.arange(19)
    back = cityscapes.TRAIN_ID_OF_LABEL_ID[cityscapes.LABEL_ID_OF_TRAIN_ID[trained]]
    np.testing.assert_array_equal(back, trained)
    assert cityscapes.LABEL_ID_OF_TRAIN_ID[255] == 0


def test_both_kinds_of_label_files_give_the_same_classes(make_cityscapes: Callable[..., Path]) -> None:
    trained = open_cityscapes(make_cityscapes(ids=("labelTrainIds", "labelIds")), "val")
    assert all(pair.label is not None and "TrainIds" in pair.label.name for pair in trained.pairs)
    expected = [trained.read_label(i) for i in range(4)]
    for pair in trained.pairs:
        assert pair.label is not None
        pair.label.unlink()
    official = open_dataset(trained.root, "val")
    assert [pair.name for pair in official.pairs] == [pair.name for pair in trained.pairs]
    for i in range(4):
        np.testing.assert_array_equal(official.read_label(i), expected[i])
        assert set(np.unique(expected[i])) == {*range(19), 255}
    names = [pair.image.parent.name for pair in official.pairs]
    assert names == ["aachen", "aachen", "ulm", "ulm"]
    sample = official.read(0)
    assert sample.image.shape == (24, 40, 3)


def test_missing_labels_are_all_named(make_cityscapes: Callable[..., Path]) -> None:
    root = make_cityscapes()
    gone = sorted((root / "gtFine").rglob("*.png"))[:2]
    for path in gone:
        path.unlink()
    with pytest.raises(DataError, match="2 of 4 images have no label map") as caught:
        open_cityscapes(root, "val")
    assert len(caught.value.faults) == 2
    assert all(path.name in fault for path, fault in zip(gone, caught.value.faults, strict=True))
    without = open_cityscapes(root, "val", labels=False)
    assert len(without) == 4
    with pytest.raises(DataError, match="no label map"):
        without.read_label(0)


def test_mixed_up_ids_are_found(make_cityscapes: Callable[..., Path]) -> None:
    root = make_cityscapes(ids=("labelIds",))
    path = next((root / "gtFine").rglob("*.png"))
    path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    data = open_cityscapes(root, "val")
    wrong = [pair.name for pair in data.pairs].index(path.name.split("_gtFine")[0])
    with pytest.raises(DataError, match=r"labelTrainIds.*labelTrainIds\. If the file holds labelIds, name it"):
        data.read_label(wrong)

    root = make_cityscapes(ids=("labelTrainIds",))
    for path in (root / "gtFine").rglob("*labelTrainIds.png"):
        path.rename(path.with_name(path.name.replace("labelTrainIds", "labelIds")))
    data = open_cityscapes(root, "val")
    for i in range(4):
        with pytest.raises(DataError, match="255 and no id from 19 on"):
            data.read_label(i)


def test_255_beside_real_label_ids_is_ignored() -> None:
    stored = np.array([[7, 26, 255, 0]], np.uint8)
    np.testing.assert_array_equal(LABEL_IDS.apply(stored, "x"), [[0, 13, 255, 255]])
    with pytest.raises(DataError, match="34, 200, which are not among the labelIds"):
        LABEL_IDS.apply(np.array([[34, 200, 7]], np.uint8), "x")


def test_a_label_of_another_size_is_refused(make_cityscapes: Callable[..., Path]) -> None:
    data = open_cityscapes(make_cityscapes(), "val")
    label = data.pairs[1].label
    assert label is not None
    write_png(label, read_label(label)[:, :-1])
    with pytest.raises(DataError, match="39x24, its image is 40x24"):
        data.read(1)


def test_what_is_no_data_set_is_refused(tmp_path: Path, make_cityscapes: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"neither leftImg8bit nor dataset\.toml"):
        open_dataset(tmp_path, "val")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "absent", "val")
    root = make_cityscapes(splits=("val", "train", "extra"))
    assert find_splits(root) == ("train", "val", "extra")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(root, "nosuch")
    for split in (str(root / "leftImg8bit" / "val"), "../../city/leftImg8bit/val", "va*", "*"):
        with pytest.raises(DataError, match="no such split"):
            open_dataset(root, split)
    assert len(open_dataset(root, "val/ulm")) == 2
    (root / "leftImg8bit" / "empty").mkdir()
    with pytest.raises(DataError, match="there are no images"):
        open_dataset(root, "empty")
