"""Known data sets: what each stored id becomes, by tables written apart from the descriptions; layouts; generations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from dgmn2cli.data.catalog import find_splits, open_dataset
from dgmn2cli.data.check import check_dataset, require_sound
from dgmn2cli.data.cityscapes import CATEGORY_OF_CLASS, CLASSES, PALETTE, open_cityscapes
from dgmn2cli.data.dataset import STORED_IDS
from dgmn2cli.data.folder import id_map
from dgmn2cli.data.preset import find_preset, open_preset, presets, recognise, stored_ids
from dgmn2cli.demo.streets import dataset
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.evaluate.counting import confusion

IGNORED, REFUSED = 255, 999
NAMES = sorted(presets())
SIZE = (128, 64)

# runs of (first stored id, what it and those after it become); written from the data sets' own lists of labels
TRAIN_IDS = "0-18=0-18 255=x"
LABEL_IDS = "0-6=x 7-8=0-1 9-10=x 11-13=2-4 14-16=x 17=5 18=x 19-28=6-15 29-30=x 31-33=16-18 255=x"
# the 40 labels of IDD in the order of its list: Cityscapes training ids, x where its list has 255
IDD = "0 x x 1 x 9 11 x 12 17 18 x 13 14 15 x x 16 x x 3 4 x x 7 6 5 x x 2 x x 8 10 x x x x x x"
# the 66 of Mapillary Vistas 1.2, five a group
VISTAS = (
    "x x 1 4 4  x 3 0 0 1  0 1 0 0 0  1 2 2 2 11  12 12 12 0 0  x 9 10 9 9  8 x x x x  x x x x x "
    "x x x x x  5 7 5 6 x  7 x 18 x 15  13 x 17 16 x  x 14 x x x  x"
)
TABLES = {
    "acdc": TRAIN_IDS,
    "dark-zurich": TRAIN_IDS,
    "nighttime-driving": TRAIN_IDS,
    "bdd100k": TRAIN_IDS,
    "bdd100k-seg": TRAIN_IDS,
    "urbansyn": TRAIN_IDS + " 19=x",
    "kitti": LABEL_IDS,
    "gta5": LABEL_IDS + " 34=x",
    "wilddash2": LABEL_IDS + " 34-35=13 36-37=x 38=0",
    "idd": " ".join(f"{i}={to}" for i, to in enumerate(IDD.split())) + " 255=x",
    "idd-csids": LABEL_IDS.replace("0-6=x", "0-3=x").replace("19-28=6-15", "19-21=6-8 23-28=10-15") + " 355=x 99=x",
    "mapillary": " ".join(f"{i}={to}" for i, to in enumerate(VISTAS.split())) + " 255=x",
}
TABLES["mapillary-v2-folders"] = TABLES["mapillary"]


def spelled(text: str) -> np.ndarray:
    """(65536,) what each stored id becomes: a training id, `IGNORED`, or `REFUSED` where none is named."""
    table = np.full(STORED_IDS, REFUSED)
    for part in text.split():
        stored, becomes = part.split("=")
        first, last = (
            (int(end) for end in (stored.split("-") * 2)[:2]) if "-" not in stored else map(int, stored.split("-"))
        )
        for place, one in enumerate(range(first, last + 1)):
            low = becomes.split("-")[0]
            table[one] = IGNORED if low == "x" else int(low) + (place if "-" in becomes else 0)
    return table


def test_there_is_a_table_for_each() -> None:
    assert set(TABLES) == set(NAMES)
    assert len(NAMES) == 13


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_value_becomes_what_the_data_sets_own_list_says(name: str) -> None:
    ids, wanted = id_map(find_preset(name).said), spelled(TABLES[name])
    np.testing.assert_array_equal(np.where(ids.legal, ids.table.astype(int), REFUSED), wanted)
    absent = [CLASSES[index] for index in range(19) if index not in wanted]
    assert find_preset(name).mapping().without == tuple(absent)
    assert absent == (["terrain"] if name == "idd-csids" else [])


def test_a_hash_is_that_of_the_mapping() -> None:
    hashes = {name: find_preset(name).mapping().sha256 for name in NAMES}
    assert hashes["acdc"] == hashes["bdd100k"] == id_map(find_preset("dark-zurich").said).sha256
    assert len(set(hashes.values())) == 8


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_say_where_a_set_comes_from(name: str) -> None:
    said = find_preset(name).said
    assert said.source.startswith("https://")
    assert said.title
    assert said.licence
    assert said.note
    assert (said.classes, said.categories) == (CLASSES, CATEGORY_OF_CLASS)
    np.testing.assert_array_equal(said.palette, PALETTE)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same scenes, drawn once, in the layout of Cityscapes and of every preset, in folders of these names."""
    root = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "make_scene", lru_cache(dataset.make_scene))
        for name in ("cityscapes", *NAMES):
            layout = None if name == "cityscapes" else find_preset(name)
            dataset.make_dataset(root / name, train=1, val=2, size=SIZE, seed=3, workers=1, layout=layout)
        yield root


@pytest.mark.parametrize("name", NAMES)
def test_drawn_scenes_give_the_confusion_matrix_that_they_give_in_cityscapes(name: str, drawn: Path) -> None:
    preset, root = find_preset(name), drawn / name
    data = open_preset(name, root)
    require_sound(check_dataset(data))
    assert data.mapping == preset.mapping()
    assert (data.kind, data.classes) == ("folder", CLASSES)
    assert recognise(root) == [name]
    splits = ("val",) if len(preset.said.splits) > 1 else ("train", "val")
    official = [open_cityscapes(drawn / "cityscapes", split) for split in splits]
    assert len(data) == sum(map(len, official))
    guess = np.random.default_rng(1).integers(0, 19, SIZE[::-1], np.uint8)
    total = sum(confusion(guess, data.read(index).label, 19) for index in range(len(data)))
    wanted = sum(confusion(guess, split.read_label(index), 19) for split in official for index in range(len(split)))
    wanted[[CLASSES.index(absent) for absent in preset.mapping().without]] = 0
    np.testing.assert_array_equal(total, wanted)
    assert total.sum() > 0.8 * len(data) * SIZE[0] * SIZE[1]


def test_another_generation_is_told_by_name(drawn: Path) -> None:
    for one, other in (("bdd100k", "bdd100k-seg"), ("idd", "idd-csids"), ("mapillary", "mapillary-v2-folders")):
        for made, asked in ((one, other), (other, one)):
            with pytest.raises(DataError) as refused:
                open_preset(asked, drawn / made)
            assert f"--dataset {made}." in refused.value.hint
    with pytest.raises(DataError) as refused:
        open_dataset(drawn / "bdd100k", "val")
    assert "--dataset bdd100k." in refused.value.hint


def test_the_condition_above_the_split_and_16_bit_ids(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "acdc", tmp_path / "a")
    for kind in ("rgb_anon", "gt"):
        (tmp_path / "a" / kind / "drawn").rename(tmp_path / "a" / kind / "fog")
    assert [pair.name for pair in open_preset("acdc", tmp_path / "a").pairs] == [
        "fog/val/seefeld_000000",
        "fog/val/seefeld_000001",
    ]
    assert [pair.name for pair in open_preset("acdc", tmp_path / "a", "train").pairs] == ["fog/train/nordhafen_000000"]
    shutil.copy(find_preset("acdc").path, tmp_path / "a" / "dataset.toml")  # as `data template` gives it
    assert find_splits(tmp_path / "a") == ("train", "val")
    assert len(open_dataset(tmp_path / "a", "val")) == 2
    ids = id_map(find_preset("idd-csids").said)
    stored = np.array([[7, 355], [99, 33]], np.uint16)
    assert ids.apply(stored, "x").tolist() == [[0, 255], [255, 18]]
    with pytest.raises(DataError, match="label map is wrong"):
        ids.apply(np.array([[356]], np.uint16), "x")
    assert stored_ids(ids, 19)[CLASSES.index("terrain")] in (0, 1, 2, 3)


def test_no_such_data_set() -> None:
    with pytest.raises(ConfigError) as refused:
        find_preset("bdd100")
    assert "bdd100k" in refused.value.hint
