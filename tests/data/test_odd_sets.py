"""Data sets as people keep them: links, litter, equal names, turned images, colour labels, large ids, one class."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgmn2cli.config import DataConfig
from dgmn2cli.data.catalog import find_splits, open_configured, open_dataset
from dgmn2cli.data.check import DataReport, check_dataset, require_sound
from dgmn2cli.data.cityscapes import open_cityscapes
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import ConfigError, DataError

SIZE = (12, 20)
IDS = (np.arange(SIZE[0] * SIZE[1]) % 3).reshape(SIZE).astype(np.uint8)
THREE = 'classes = ["sky", "road", "house"]\n'


def make(root: Path, description: str = THREE, names: tuple[str, ...] = ("a", "b", "c"), suffix: str = ".jpg") -> Path:
    (root / "images/train").mkdir(parents=True)
    (root / "dataset.toml").write_text(description)
    for name in names:
        Image.new("RGB", SIZE[::-1]).save(root / f"images/train/{name}{suffix}")
        write_png(root / f"labels/train/{name}.png", IDS)
    return root


def check(root: Path) -> DataReport:
    return check_dataset(open_dataset(root, "train"))


def test_linked_folders(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    for kind in ("images", "labels"):
        shutil.move(root / kind / "train", tmp_path / kind)
        (root / kind / "train" / "own").mkdir(parents=True)
        (root / kind / "train" / "linked").symlink_to(tmp_path / kind)
        suffix = "jpg" if kind == "images" else "png"
        shutil.move(tmp_path / kind / f"a.{suffix}", root / kind / "train" / "own")
    (root / "images/train/own/circle").symlink_to("..")
    report = require_sound(check(root))
    assert report.pairs == 3
    assert any("circle" in note for note in report.notes)


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    for name in ("._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg"):
        path = root / "images/train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\x05\x16\x07" + bytes(100))
    (root / "images/.val").mkdir()
    report = require_sound(check(root))
    assert report.pairs == 3
    assert "left out 3" in report.notes[0]
    assert find_splits(root) == ("train",)


def test_hidden_files_in_a_cityscapes_tree(tmp_path: Path) -> None:
    for folder, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
        for name in ("ulm_1_1_", "._ulm_1_1_"):
            write_png(tmp_path / folder / "val" / "ulm" / f"{name}{suffix}.png", IDS)
    (tmp_path / "gtFine" / ".val").mkdir()
    data = open_cityscapes(tmp_path, "val")
    assert [pair.name for pair in data.pairs] == ["ulm_1_1"]
    assert data.unmatched == ()
    assert find_splits(tmp_path) == ("val",)


def test_suffixes_in_any_case_and_names_in_any_unicode_form(tmp_path: Path) -> None:
    root = make(tmp_path / "set", names=("a", "Größe"), suffix=".JPG")
    label = root / "labels/train/Größe.png"
    label.rename(label.with_name(unicodedata.normalize("NFD", "Größe.PNG")))
    assert require_sound(check(root)).pairs == 2


def test_labels_beside_their_images(tmp_path: Path) -> None:
    for names, description in (
        (("x.jpg", "y.jpg", "x.png", "y.png"), ""),
        (("x.png", "y.jpg", "x_mask.png", "y_mask.png"), 'label_suffix = "_mask.png"\n'),
        (("x.png", "y.jpg", "masks/x.png", "masks/y.png"), 'labels = "all/masks"\n'),
    ):
        root = tmp_path / str(len(description))
        (root / "all" / "masks").mkdir(parents=True)
        where = "" if "labels" in description else 'labels = "all"\n'
        (root / "dataset.toml").write_text(f'images = "all"\n{where}{description}{THREE}')
        for number, name in enumerate(names):
            image = Image.new("RGB", SIZE[::-1]) if number < 2 else Image.fromarray(IDS)
            image.save(root / "all" / name)
        data = open_dataset(root, "all")
        assert [pair.name for pair in data.pairs] == ["x", "y"]
        assert (data.unmatched, check_dataset(data).faults) == ((), ())
        assert len(open_dataset(root, "all", labels=False)) == 2


def test_one_label_map_for_two_images_is_said(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    Image.new("RGB", SIZE[::-1]).save(root / "images/train/a.png")
    report = require_sound(check(root))
    assert report.pairs == 4
    assert len({pair.name for pair in open_dataset(root, "train").pairs}) == 4
    assert any("2 images have this label map" in note for note in report.notes)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_turned_images_beside_unturned_labels(tmp_path: Path, orientation: int) -> None:
    root = make(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (root / "images/train").iterdir():
        Image.new("RGB", SIZE[::-1]).save(path, exif=exif)
    report = check(root)
    if orientation == 3:  # the sizes agree whichever way it was drawn
        assert report.faults == ()
    else:
        assert len(report.faults) == 3
        assert all("EXIF orientation" in fault for fault in report.faults)
        for path in (root / "labels/train").iterdir():
            write_png(path, np.ascontiguousarray(IDS.T))
        report = require_sound(check(root))
    assert any("EXIF orientation" in note and "2 more" in note for note in report.notes)


COLOURS = np.array([[70, 130, 180], [128, 64, 128], [70, 70, 70]], np.uint8)
PALETTE = f"palette = {COLOURS.tolist()}\n"


def test_colour_labels(tmp_path: Path) -> None:
    root = make(tmp_path / "set", THREE + PALETTE)
    for path in (root / "labels/train").iterdir():
        Image.fromarray(COLOURS[IDS]).save(path)
    report = check(root)
    assert len(report.faults) == 3
    assert "label_format" in report.faults[0]
    (root / "dataset.toml").write_text(THREE + PALETTE + 'label_format = "colour"')
    data = open_dataset(root, "train")
    np.testing.assert_array_equal(data.read_label(0), IDS)
    assert require_sound(check_dataset(data)).classes[0].pixels == 240
    odd = COLOURS[IDS]
    odd[0, :2] = [[1, 2, 3], [255, 255, 255]]
    Image.fromarray(odd).save(root / "labels/train/a.png")
    assert "2 colours that are no class's: [1, 2, 3]" in check(root).faults[0]
    (root / "dataset.toml").write_text(THREE + PALETTE + 'label_format = "colour"\nunlisted = "ignore"')
    assert open_dataset(root, "train").read_label(0)[0, :3].tolist() == [255, 255, 2]
    indices = Image.fromarray(IDS)
    indices.putpalette(COLOURS.ravel().tolist())
    indices.save(root / "labels/train/a.png")
    np.testing.assert_array_equal(open_dataset(root, "train").read_label(0), IDS)


def test_jpeg_labels_get_the_right_advice(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    Image.fromarray(IDS).save(root / "labels/train/a.png", "JPEG")
    fault = check(root).faults[0]
    assert "JPEG" in fault
    assert "Convert" not in fault


def test_ids_up_to_65535(tmp_path: Path) -> None:
    stored = np.array([300, 65535, 7], np.uint16)[IDS]
    text = THREE + 'ignore = 65535\n[id_map]\n300 = "road"\n7 = "ignore"\n'
    root = make(tmp_path / "set", text)
    for path in (root / "labels/train").iterdir():
        write_png(path, stored)
    np.testing.assert_array_equal(open_dataset(root, "train").read_label(0), np.array([1, 255, 255])[IDS])
    (root / "dataset.toml").write_text(THREE)
    assert "it holds 7, 300, 65535" in check(root).faults[0]
    write_png(root / "labels/train/a.png", np.array([0, 1, 1000], np.uint16)[IDS])
    settings = DataConfig(kind="folder", root=str(root), ignore_index=1000)
    np.testing.assert_array_equal(open_configured(settings, "train").read_label(0), np.array([0, 1, 255])[IDS])


def test_one_class_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "set", 'classes = ["house"]')
    with pytest.raises(ConfigError, match="background"):
        open_dataset(root, "train")
    with pytest.raises(ConfigError, match="one class"):
        DataConfig(kind="folder", root=str(root), classes=("house",))


def test_images_of_a_wrong_kind_are_named_with_their_remedy(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    (root / "images/train/a.jpg").write_bytes(b"\xff\x0a" + bytes(60))
    Image.new("RGB", (4, 4)).save(root / "images/train/b.jpg", "GIF")
    faults = check(root).faults
    assert "JPEG XL" in faults[0]
    assert "its image is 4x4" in faults[1]


def test_a_split_that_is_no_folder(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    for split in ("{split.x}", "a\0b", "../..", "\udcff"):
        with pytest.raises(DataError):
            open_dataset(root, split)


def test_ids_of_16_bits_are_no_colours(tmp_path: Path) -> None:
    """Their upper bytes are all zero, which would be the colour of the first class."""
    root = make(tmp_path / "set", THREE + PALETTE + 'label_format = "colour"\nunlisted = "ignore"')
    for name in "abc":
        write_png(root / f"labels/train/{name}.png", IDS.astype(np.uint16) * 7)
    faults = check(root).faults
    assert len(faults) == 3
    assert "16 bits" in faults[0]
    assert 'label_format = "ids"' in faults[0]
