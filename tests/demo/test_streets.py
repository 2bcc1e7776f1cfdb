"""Synthetic streets: the same seed gives the same bytes, the tree is a sound Cityscapes tree, every class is there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgmn2cli.data.check import check_dataset, require_sound
from dgmn2cli.data.cityscapes import CLASSES, LABELS, TRAIN_ID_OF_LABEL_ID, open_cityscapes
from dgmn2cli.data.images import read_label
from dgmn2cli.demo.streets.dataset import make_dataset, make_scene, shown_classes, wanted_classes
from dgmn2cli.demo.streets.scene import INSTANCED, OPTIONAL
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.evaluate.counting import compute_scores, confusion

SMALL = (256, 128)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synth")
    report = make_dataset(root, train=6, val=3, size=SMALL, seed=4)
    assert report.images == {"train": 6, "val": 3}
    assert report.classes == {"train": CLASSES, "val": CLASSES}
    return root


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_tree_has_five_files_a_scene_and_is_sound(tree: Path) -> None:
    assert len(list(tree.rglob("*.png"))) == 5 * 9
    for split, count in (("train", 6), ("val", 3)):
        report = require_sound(check_dataset(open_cityscapes(tree, split)))
        assert (report.pairs, report.sizes, report.notes) == (count, {"256x128": count}, ())
        assert all(entry.images >= 1 for entry in report.classes)
        assert report.ignored_share < 0.1


def test_the_five_files_agree(tree: Path) -> None:
    colors = {label.id: label.colour for label in LABELS}
    names = {label.id: label.name for label in LABELS}
    for path in sorted(tree.rglob("*_labelIds.png")):
        ids = read_label(path)
        np.testing.assert_array_equal(
            read_label(path.with_name(path.name.replace("labelIds", "labelTrainIds"))), TRAIN_ID_OF_LABEL_ID[ids]
        )
        painted = np.array(Image.open(path.with_name(path.name.replace("labelIds", "color"))))
        instances = np.array(Image.open(path.with_name(path.name.replace("labelIds", "instanceIds"))))
        for value in np.unique(ids):
            assert (painted[ids == value] == colors[int(value)]).all()
            found = np.unique(instances[ids == value])
            if names[int(value)] in INSTANCED:
                assert (found // 1000 == value).all()
            else:
                assert found.tolist() == [value]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tree: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "again", train=6, val=3, size=SMALL, seed=4, workers=1)
    assert digest(tmp_path / "again") == digest(tree)
    make_dataset(tmp_path / "other", train=1, val=1, size=SMALL, seed=5)
    other = digest(tmp_path / "other")
    assert not set(other.values()) & set(digest(tree).values())


def test_a_known_scene_has_known_bytes() -> None:
    scene = make_scene(1, "val", 0, 3, SMALL)
    sums = [hashlib.sha256(a.tobytes()).hexdigest()[:12] for a in (scene.image, scene.ids, scene.instances)]
    assert sums == ["ba861e17e0f5", "e96c46025210", "065479460e16"]  # whatever the version of OpenCV


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_class_is_asked_for_whatever_the_size_of_the_split(count: int) -> None:
    wanted = [wanted_classes(index, count, np.random.RandomState(index)) for index in range(count)]
    assert set().union(*wanted) == set(OPTIONAL)


@pytest.mark.parametrize("size", [(64, 64), (96, 200), (333, 127)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    scene = make_scene(3, "train", 0, 1, size)
    assert scene.image.shape == (size[1], size[0], 3)
    assert scene.ids.shape == scene.instances.shape == (size[1], size[0])
    assert {"road", "sky"} <= shown_classes(scene)


def test_colour_alone_does_not_give_the_class(tree: Path) -> None:
    train, val = open_cityscapes(tree, "train"), open_cityscapes(tree, "val")

    def bins(image: np.ndarray) -> np.ndarray:
        fine = (image >> 4).astype(np.int64)
        return (fine[..., 0] * 16 + fine[..., 1]) * 16 + fine[..., 2]

    table = np.zeros((4096, 256), np.int64)
    for i in range(len(train)):
        sample = train.read(i)
        np.add.at(table, (bins(sample.image), sample.label), 1)
    best = table[:, :19].argmax(axis=1)
    counts = np.zeros((19, 20), np.int64)
    for i in range(len(val)):
        sample = val.read(i)
        counts += confusion(best[bins(sample.image)], sample.label, 19)
    assert compute_scores(counts, CLASSES).mean_iou < 0.25


def test_impossible_requests_are_refused(tree: Path, tmp_path: Path) -> None:
    for wrong in ({"size": (10, 64)}, {"size": (64, 10_000)}, {"train": 0}, {"val": -1}, {"seed": -1}):
        with pytest.raises(ConfigError, match="cannot make the synthetic data set"):
            make_dataset(tmp_path / "x", **{"train": 1, "val": 1, **wrong})
    assert not (tmp_path / "x").exists()
    with pytest.raises(DataError, match="leftImg8bit and gtFine already"):
        make_dataset(tree, train=1, val=1)
    (tmp_path / "dataset.toml").touch()  # a user's own images
    with pytest.raises(DataError, match=r"dataset\.toml already"):
        make_dataset(tmp_path, train=1, val=1)
