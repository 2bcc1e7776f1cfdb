"""Users' own folders: the description with all its faults at once, and what each key does."""

from __future__ import annotations

import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from dgmn2cli.data.catalog import find_splits, open_dataset
from dgmn2cli.data.folder import FolderDescription, description_schema, id_map, load_description, open_folder
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import ConfigError, DataError

IDS = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)


def make(root: Path, description: str, stored: np.ndarray = IDS, suffix: str = ".png", split: str = "train/") -> Path:
    root.mkdir(exist_ok=True)
    (root / "dataset.toml").write_text(description)
    for name in ("b/two", "one"):
        path = root / f"images/{split}{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*stored.shape, 3), np.uint8)).save(path)
        write_png(root / f"labels/{split}{name}.png", stored)
    return root


def test_two_folders_and_a_list_of_classes(tmp_path: Path) -> None:
    root = make(tmp_path, 'classes = ["a", "b", "c"]')
    data = open_dataset(root, "train")
    assert [pair.name for pair in data.pairs] == ["b/two", "one"]
    assert data.classes == ("a", "b", "c")
    assert data.kind == "folder"
    np.testing.assert_array_equal(data.read_label(1), IDS)
    assert data.palette.shape == (3, 3)
    assert len(np.unique(data.palette, axis=0)) == 3
    assert find_splits(root) == ("train",)
    assert [pair.image for pair in open_dataset(root / "dataset.toml", "train").pairs] == [p.image for p in data.pairs]


def test_folders_without_split_palette_and_suffixes(tmp_path: Path) -> None:
    text = """
        classes = ["a", "b", "c"]
        images = "images"
        labels = "labels"
        image_suffix = ".JPG"
        palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
        categories = ["x", "x", "y"]
    """
    root = make(tmp_path, text, suffix=".jpg", split="")
    (root / "images" / "readme.txt").write_text("not an image")
    data = open_dataset(root, "val")
    assert find_splits(root) == ("all",)
    assert len(data) == 2
    assert data.categories == ("x", "x", "y")
    np.testing.assert_array_equal(data.palette, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])


@pytest.mark.parametrize(
    ("images", "found"),
    [
        ("images/{split}", ["train"]),
        ("ROOT/images/{split}", ["train"]),
        ("*/{split}", ["train"]),
        ("**/a**b/{split}", []),
        ("../[x", []),
        ("", ["train", "gone"]),
    ],
)
def test_named_splits_are_looked_for_in_any_folder(tmp_path: Path, images: str, found: list[str]) -> None:
    text = f'classes = ["a", "b", "c"]\nimages = "{images}"\nsplits = ["train", "gone"]\n'
    assert list(find_splits(make(tmp_path, text.replace("ROOT", str(tmp_path))))) == found


def test_a_split_does_not_lead_out_of_the_data_set(tmp_path: Path) -> None:
    root = make(tmp_path / "one", 'classes = ["a", "b", "c"]\nimages = "{split}"\nlabels = "labels/train"\n')
    for split in (str(root / "images" / "train"), "../one/images/train", "images/../images/train", "/", "tr*"):
        with pytest.raises(DataError, match="no such split"):
            open_dataset(root, split)
    assert len(open_dataset(root, "images/train")) == 2


def test_reduce_zero_label(tmp_path: Path) -> None:
    data = open_folder(make(tmp_path, 'classes = ["a", "b"]\nreduce_zero_label = true') / "dataset.toml")
    np.testing.assert_array_equal(data.read_label(0), [[255, 0, 1], [1, 0, 255]])


def test_id_map(tmp_path: Path) -> None:
    text = 'classes = ["a", "b"]\n[id_map]\n0 = "b"\n1 = "ignore"\n2 = "b"'
    data = open_folder(make(tmp_path, text) / "dataset.toml")
    np.testing.assert_array_equal(data.read_label(0), [[1, 255, 1], [1, 255, 255]])
    partial = 'classes = ["a", "b"]\n[id_map]\n1 = "a"'
    data = open_folder(make(tmp_path, partial) / "dataset.toml")
    with pytest.raises(DataError, match="it holds 0, 2, which are not among the class ids"):
        data.read_label(0)
    data = open_folder(make(tmp_path, 'unlisted = "ignore"\n' + partial) / "dataset.toml")
    np.testing.assert_array_equal(data.read_label(0), [[255, 0, 255], [255, 0, 255]])


def test_ignored_ids() -> None:
    table = id_map(FolderDescription(("a", "b", "c"), ignore=(1, 200))).table
    np.testing.assert_array_equal(table[[0, 1, 2, 200]], [0, 255, 2, 255])
    legal = id_map(FolderDescription(("a", "b", "c"), ignore=(1, 200))).legal
    assert np.flatnonzero(legal).tolist() == [0, 1, 2, 200]
    mapped = id_map(FolderDescription(("a", "b"), id_map=((255, "a"),)))
    assert mapped.table[255] == 0


def test_ids_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    data = open_folder(make(tmp_path, 'classes = ["a", "b"]') / "dataset.toml")
    with pytest.raises(DataError, match="it holds 2, which is not among"):
        data.read_label(0)


def test_missing_labels_are_all_named(tmp_path: Path) -> None:
    root = make(tmp_path, 'classes = ["a", "b", "c"]\nlabel_suffix = "_mask.png"')
    with pytest.raises(DataError, match="2 of 2 images") as caught:
        open_dataset(root, "train")
    assert "two_mask.png" in caught.value.faults[0]
    assert len(open_dataset(root, "train", labels=False)) == 2
    with pytest.raises(DataError, match=r"Check `images`"):
        open_dataset(root, "val")


def test_images_that_differ_in_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text('classes = ["a", "b"]\nimages = "images"\nlabels = "labels"\n')
    for name in ("images/a.png", "images/a.jpg", "images/a.png.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    data = open_folder(tmp_path / "dataset.toml", labels=False)
    assert [pair.name for pair in data.pairs] == ["a.jpg", "a.png", "a.png.jpg"]
    assert data.notes == ()
    for name in ("labels/a.png", "labels/a.png.png"):
        write_png(tmp_path / name, np.zeros((2, 2), np.uint8))
    data = open_folder(tmp_path / "dataset.toml")
    assert [pair.name for pair in data.pairs] == ["a.jpg", "a.png", "a.png.jpg"]
    assert data.notes == (f"{tmp_path / 'labels/a.png'}: 2 images have this label map",)


def test_label_maps_without_images_are_noticed(tmp_path: Path) -> None:
    root = make(tmp_path, 'classes = ["a", "b", "c"]')
    extra = write_png(root / "labels/train/extra.png", IDS)
    assert open_dataset(root, "train").unmatched == (extra,)


def test_all_faults_of_a_description_at_once(tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(
        """
        classes = ["a", "a"]
        image = "x"
        images = "{city}"
        palette = [[1, 2]]
        ignore = 65536
        reduce_zero_label = 1
        id_map = {x = "a"}
        unlisted = "drop"
        label_suffix = 3
        """
    )
    with pytest.raises(ConfigError) as caught:
        load_description(path)
    assert len(caught.value.faults) == 9
    assert {fault.split(":")[0] for fault in caught.value.faults} == {
        "classes", "image", "images", "palette", "ignore", "reduce_zero_label", "id_map", "unlisted", "label_suffix",
    }  # fmt: skip


COLOURS = 'classes = ["a", "b"]\nlabel_format = "colour"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "classes: missing"),
        ("classes = 3", "classes: 3, wanted a list of texts"),
        ("classes = [", "not TOML"),
        ("classes = []", "at least 1"),
        ('classes = ["a"]', "two or more"),
        ('classes = ["a", "ignore"]', "other names than 'ignore'"),
        ('classes = ["a", " "]', "wanted a list of texts"),
        ('classes = ["a", "b\\u001b[31m"]', "control characters"),
        (f'classes = ["a", "{"b" * 20_000}"]', "1 to 200 characters"),
        ('classes = ["a", "b"]\nimages = "x/{split.nope}"', "only placeholder"),
        ('classes = ["a", "b"]\nimages = "x/{split:>9999999999}"', "only placeholder"),
        ('classes = ["a", "b"]\nlabels = "{0}"', "only placeholder"),
        ('classes = ["a", "b"]\nlabel_format = "colour"', "needs a palette"),
        ('classes = ["a", "b"]\nlabel_format = "color"', "did you mean 'colour'"),
        (f"{COLOURS}palette = [[1, 2, 3], [1, 2, 3]]", "'a' and 'b' have one colour"),
        (f"{COLOURS}palette = [[1, 2, 3], [4, 5, 6]]\nreduce_zero_label = true", "label maps of colours hold no 0"),
        ('classes = ["a", "b"]\nignore = 65536', "0 to 65535"),
        ('classes = ["a", "b"]\nid_map = {65536 = "a"}', "0 to 65535"),
        ("x = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("x = " + "9" * 5000, "not TOML"),
        ("a" + ".a" * 100_000 + " = 1", "more than 400 dots"),
        ('classes = ["a"]\nclasses = ["b"]', "not TOML"),
        ('classes = ["a", "b"]\npalette = [[1, 2, 3]]', "1 entries for 2 classes"),
        ('classes = ["a", "b"]\nid_map = {1 = "z"}', "'z' is none of the classes"),
        ('classes = ["a", "b"]\nreduce_zero_label = true\nid_map = {1 = "a"}', "only one of them"),
        (f"classes = {[str(i) for i in range(256)]}", "at most 255"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        load_description(path)


def test_a_long_list_of_wrong_values_is_one_fault_and_quick(tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(f'classes = ["a", "b"]\nignore = {[70_000] * 100_000}')
    began = time.process_time()
    with pytest.raises(ConfigError, match="0 to 65535") as caught:
        load_description(path)
    assert len(caught.value.faults) == 1
    assert time.process_time() - began < 10


def test_a_description_fits_the_generated_schema(tmp_path: Path) -> None:
    schema = description_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    good = {"classes": ["a", "b"], "ignore": 65535, "id_map": {"300": "a", "7": "ignore"}, "label_format": "ids"}
    jsonschema.validate(good, schema)
    path = tmp_path / "dataset.toml"
    path.write_text('classes = ["a", "b"]\nignore = 65535\nid_map = {300 = "a", 7 = "ignore"}\n')
    assert load_description(path) == FolderDescription(("a", "b"), ignore=(65535,), id_map=((300, "a"), (7, "ignore")))
    for wrong in (
        {"classes": ["a"] * 256},
        {**good, "ignore": -1},
        {**good, "image": "x"},
        {**good, "id_map": {"x": "a"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_a_description_of_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    path.write_bytes(b'\xef\xbb\xbfclasses = ["a", "b"]\r\nunlisted = "ignore"\r\n')
    assert load_description(path).unlisted == "ignore"


def test_an_unreadable_description(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_description(tmp_path / "none.toml")
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="line 1 is not UTF-8"):
        load_description(path)


def test_what_label_maps_mean_has_a_hash(tmp_path: Path) -> None:
    """Neither images nor label maps change with it: whoever goes on with earlier counts must ask for it."""
    write_png(tmp_path / "images" / "val" / "a.png", np.zeros((4, 4, 3), np.uint8))
    write_png(tmp_path / "labels" / "val" / "a.png", np.zeros((4, 4), np.uint8))
    palette = "palette = [[0, 0, 0], [1, 1, 1]]"

    def meaning(*lines: str) -> str:
        (tmp_path / "dataset.toml").write_text("\n".join(lines))
        return open_folder(tmp_path / "dataset.toml", "val").meaning

    both = 'classes = ["a", "b"]'
    found = [
        meaning(both),
        meaning('classes = ["b", "a"]'),
        meaning(both, "ignore = 1"),
        meaning(both, 'unlisted = "ignore"'),
        meaning(both, 'id_map = {0 = "b", 1 = "a"}'),
        meaning(both, palette, 'label_format = "colour"'),
        meaning(both, palette.replace("1, 1, 1", "2, 2, 2"), 'label_format = "colour"'),
    ]
    assert len(set(found)) == len(found)
    assert meaning(both, palette, "", 'title = "mine"') == found[0]
