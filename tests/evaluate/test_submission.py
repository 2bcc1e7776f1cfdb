"""Submissions: the files the server wants, and a check of a zip that names every fault."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from streets import SMALL, Colours, Watcher, make_tree, segmenter

from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.images import write_png
from dgmn2cli.data.png import encode_indices
from dgmn2cli.errors import CheckFailed, ConfigError, DataError, ResourceError
from dgmn2cli.evaluate import evaluate, submission
from dgmn2cli.evaluate.submission import (
    OFFICIAL,
    TEST_CITIES,
    Expected,
    expected_of,
    image_name,
    require_valid,
    validate_zip,
    write_zip,
)
from dgmn2cli.inference.prediction import ClassList

NAMES = ["aachen_000001_000019", "aachen_000003_000019", "ulm_000000_000019", "ulm_000002_000019"]
EXPECTED = Expected(dict.fromkeys(NAMES, (40, 24)), "four images")


def encoded(pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", pixels)
    assert done
    return data.tobytes()


def label(fill: int = 7) -> np.ndarray:
    return np.full((24, 40), fill, np.uint8)


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def good() -> dict[str, bytes]:
    return {f"{name}_labelIds.png": encoded(label(26)) for name in NAMES}


def test_a_submission_from_a_model(tmp_path: Path) -> None:
    root, watcher = make_tree(tmp_path / "city", 4, split="test", ids=()), Watcher()
    data = submission.open_test(root, "test", watcher)
    assert watcher.parts == 4
    made = submission.make_submission(segmenter(), data, SMALL, tmp_path / "out", tmp_path / "out.zip")
    assert made.check.faults == ()
    assert (made.check.files, made.check.expected, made.check.bytes) == (4, 4, made.zip.stat().st_size)
    assert made.run is not None
    assert made.run.model == "fake"
    labelled = open_dataset(make_tree(tmp_path / "labelled", 4), "val")
    evaluate(segmenter(), labelled, SMALL, save_preds=tmp_path / "preds")
    with zipfile.ZipFile(made.zip) as archive:
        assert archive.namelist() == [f"{name}_labelIds.png" for name in NAMES]
        for name in archive.namelist():
            assert archive.read(name) == (tmp_path / "preds" / "labelIds" / name).read_bytes()

    kept = submission.make_submission(None, data, SMALL, tmp_path / "preds", tmp_path / "kept.zip")
    assert kept.run is None
    assert kept.zip.read_bytes() == made.zip.read_bytes(), "the same predictions give the same bytes"


def test_kept_predictions_must_be_complete(tmp_path: Path) -> None:
    data = submission.open_test(make_tree(tmp_path / "city", 4, split="test", ids=()), "test")
    folder = tmp_path / "kept"
    for name in NAMES[:3]:
        write_png(folder / f"{name}_pred.png", label())
    write_png(folder / "deeper" / f"{NAMES[0]}.png", label())
    write_png(folder / "unrelated.png", label())
    with pytest.raises(DataError, match="2 of 4 images") as caught:
        submission.make_submission(None, data, SMALL, folder, tmp_path / "x.zip")
    assert [fault.split(":")[0] for fault in caught.value.faults] == [NAMES[3], NAMES[0]]
    assert not (tmp_path / "x.zip").exists()
    with pytest.raises(ConfigError, match="it is a folder"):
        submission.make_submission(None, data, SMALL, folder, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        submission.kept_predictions(tmp_path / "nowhere", data)


def test_pictures_are_checked_first(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "city", 3, split="test", ids=())
    pictures = sorted((root / "leftImg8bit").rglob("*.png"))
    pictures[0].write_bytes(pictures[0].read_bytes()[:99])
    pictures[1].rename(pictures[1].with_name("holiday_leftImg8bit.png"))
    with pytest.raises(DataError, match="2 faults in split test") as caught:
        submission.open_test(root, "test")
    assert "holiday" in caught.value.faults[0]
    assert pictures[0].name in caught.value.faults[1]
    (tmp_path / "dataset.toml").write_text('images = "city"\nlabels = "labels"\nclasses = ["a", "b"]\n')
    with pytest.raises(ConfigError, match="submissions are for Cityscapes"):
        submission.open_test(tmp_path, "all")


def test_other_classes_cannot_be_submitted(tmp_path: Path) -> None:
    data = submission.open_test(make_tree(tmp_path / "city", 1, split="test", ids=()), "test")
    other = segmenter(Colours())
    other.classes = ClassList(tuple("abc"), np.zeros((3, 3), np.uint8), cityscapes=False)
    with pytest.raises(ConfigError, match="not those of Cityscapes"):
        submission.make_submission(other, data, SMALL, tmp_path / "out", tmp_path / "out.zip")


def test_names() -> None:
    for name in ("bonn_000001_000019.png", "a/b/bonn_000001_000019_x.PNG", "c\\bonn_000001_000019_labelIds.png"):
        assert image_name(name) == "bonn_000001_000019"
    for name in ("bonn_000001_000019.jpg", "bonn_1_2.png", "._bonn_000001_000019.png", "bonn_000001_0000190.png", ""):
        assert image_name(name) == ""


def test_a_good_zip(tmp_path: Path) -> None:
    for members in (
        good(),
        {f"results/{name}": content for name, content in good().items()},
        {**good(), f"{NAMES[0]}_labelIds.png": encoded(label(0))},
    ):
        report = validate_zip(zipped(tmp_path / "a.zip", members), EXPECTED)
        assert (report.faults, report.files) == ((), 4)
        require_valid(report)


def test_palette_indices_are_ids(tmp_path: Path) -> None:
    palette = encode_indices(label(), np.zeros((34, 3), np.uint8))
    report = validate_zip(zipped(tmp_path / "a.zip", {**good(), f"{NAMES[0]}_labelIds.png": palette}), EXPECTED)
    assert report.faults == ()


FAULTS: list[tuple[str, Callable[[dict[str, bytes]], object], str]] = [
    ("missing", lambda m: m.pop(f"{NAMES[1]}_labelIds.png"), f"{NAMES[1]}: no file"),
    ("twice", lambda m: m.update({f"b/{NAMES[1]}.png": encoded(label())}), f"{NAMES[1]}: 2 files"),
    ("stranger", lambda m: m.update({"bonn_000001_000019.png": encoded(label())}), "there is no such image"),
    ("text", lambda m: m.update({"readme.txt": b"hello"}), "readme.txt: the name is not CITY_123456_123456*.png"),
    ("size", lambda m: m.update({f"{NAMES[0]}_labelIds.png": encoded(label()[:, 1:])}), "it is 39x24, and 40x24"),
    (
        "colour",
        lambda m: m.update({f"{NAMES[0]}_labelIds.png": encoded(np.zeros((24, 40, 3), np.uint8))}),
        "one channel",
    ),
    (
        "alpha",
        lambda m: m.update({f"{NAMES[0]}_labelIds.png": encoded(np.zeros((24, 40, 4), np.uint8))}),
        "one channel",
    ),
    ("depth", lambda m: m.update({f"{NAMES[0]}_labelIds.png": encoded(label().astype(np.uint16))}), "an 8-bit image"),
    ("ids", lambda m: m.update({f"{NAMES[0]}_labelIds.png": encoded(label(34))}), "holds 34, and labelIds are 0 to 33"),
    ("255", lambda m: m.update({f"{NAMES[0]}_labelIds.png": encoded(label(255))}), "holds 255, and"),
    ("no png", lambda m: m.update({f"{NAMES[0]}_labelIds.png": b"<html>"}), "it is an HTML page"),
    ("empty", lambda m: m.update({f"{NAMES[0]}_labelIds.png": b""}), "it is no PNG"),
    ("cut", lambda m: m.update({f"{NAMES[0]}_labelIds.png": encoded(label())[:-30]}), "cut"),
    (
        "damaged",
        lambda m: m.update({f"{NAMES[0]}_labelIds.png": encoded(label()).replace(b"IDAT", b"IDAX")}),
        "damaged",
    ),
]


@pytest.mark.parametrize(("spoil", "fault"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_each_fault_is_named(tmp_path: Path, spoil: Callable[[dict[str, bytes]], object], fault: str) -> None:
    members = good()
    spoil(members)
    report = validate_zip(zipped(tmp_path / "a.zip", members), EXPECTED)
    assert len(report.faults) == 1, report.faults
    assert fault in report.faults[0]
    with pytest.raises(CheckFailed, match="1 fault, checked against four images") as caught:
        require_valid(report)
    assert caught.value.exit_code == 1


def test_all_faults_are_named_together(tmp_path: Path) -> None:
    members = {f"{name}_labelIds.png": b"x" for name in NAMES[:3]} | {"a.png": b"", "b.txt": b""}
    report = validate_zip(zipped(tmp_path / "a.zip", members), EXPECTED)
    assert len(report.faults) == 6
    assert report.files == 5


def test_training_ids_are_recognised(tmp_path: Path) -> None:
    trained = np.arange(24 * 40).reshape(24, 40).astype(np.uint8) % 19
    members = {f"{name}_labelIds.png": encoded(trained) for name in NAMES}
    report = validate_zip(zipped(tmp_path / "a.zip", members), EXPECTED)
    assert len(report.faults) == 1
    assert "these look like training ids" in report.faults[0]
    members = {f"{name}_labelIds.png": encoded(LABEL_ID_OF_TRAIN_ID[trained]) for name in NAMES}
    assert validate_zip(zipped(tmp_path / "a.zip", members), EXPECTED).faults == ()


def test_the_official_numbers_without_the_pictures(tmp_path: Path) -> None:
    assert sum(TEST_CITIES.values()) == OFFICIAL.count == 1525
    whole = encoded(np.full((1024, 2048), 7, np.uint8))
    members = {f"bonn_{i:06d}_000019.png": whole for i in range(46)}
    members["ulm_000000_000019.png"] = whole
    members["mainz_000000_000019.png"] = encoded(label())
    report = validate_zip(zipped(tmp_path / "a.zip", members), OFFICIAL)
    assert (report.files, report.expected) == (48, 1525)
    text = "\n".join(report.faults)
    assert "bonn:" not in text
    assert "ulm_000000_000019.png: it is of no test city" in text
    assert "mainz_000000_000019.png: it is 40x24, and 2048x1024 is wanted" in text
    assert "berlin: 0 images, and 544 are wanted" in text
    assert "mainz: 1 images, and 298 are wanted" in text
    assert len(report.faults) == 2 + 5


def test_what_is_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with pytest.raises(ResourceError, match="no such file") as caught:
        validate_zip(path, EXPECTED)
    assert caught.value.exit_code == 5
    with pytest.raises(ResourceError, match="it is a folder, wanted a file"):
        validate_zip(tmp_path, EXPECTED)
    for content in (b"", b"<html>", zipped(tmp_path / "b.zip", good()).read_bytes()[:-40]):
        path.write_bytes(content)
        report = validate_zip(path, EXPECTED)
        assert "it is no zip file" in report.faults[0]
        assert len(report.faults) == 5
    data = bytearray(zipped(path, good()).read_bytes())
    middle = data.index(b"IDAT") + 8
    data[middle] ^= 0xFF
    path.write_bytes(data)
    report = validate_zip(path, EXPECTED)
    assert len(report.faults) == 1
    assert "cannot be unpacked (Bad CRC-32" in report.faults[0]


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgmn2cli.evaluate.submission.MEMBER_LIMIT", 1 << 20)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NAMES[0]}.png", encoded(label()) + bytes(50 << 20))
        for name in NAMES[1:]:
            archive.writestr(f"{name}.png", encoded(label()))
    assert path.stat().st_size < 200_000
    report = validate_zip(path, EXPECTED)
    assert len(report.faults) == 1
    assert "more than 1,048,576 bytes" in report.faults[0]
    monkeypatch.setattr("dgmn2cli.evaluate.submission.MOST_MEMBERS", 3)
    assert "4 files, and 4 are wanted" in validate_zip(path, EXPECTED).faults[0]


def test_an_encrypted_member(tmp_path: Path) -> None:
    data = bytearray(zipped(tmp_path / "a.zip", good()).read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    report = validate_zip(tmp_path / "a.zip", EXPECTED)
    assert [fault.endswith("it is encrypted") for fault in report.faults] == [True]


def test_the_zip_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = write_png(tmp_path / "a.png", label())
    first = write_zip(tmp_path / "x" / "a.zip", [file]).read_bytes()
    with pytest.raises(DataError, match=r"cannot read the prediction .*gone\.png"):
        write_zip(tmp_path / "x" / "a.zip", [file, tmp_path / "gone.png"])
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.zip"]
    assert (tmp_path / "x" / "a.zip").read_bytes() == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.testzip() is None


def test_expected_sizes_are_those_of_the_pictures(tmp_path: Path) -> None:
    data = submission.open_test(make_tree(tmp_path / "city", 4, split="test", ids=()), "test")
    assert expected_of(data).sizes == EXPECTED.sizes
