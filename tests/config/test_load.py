"""Native configurations: the 16 published ones, bases, overrides, round trip, and every fault at once."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgmn2cli import resources
from dgmn2cli.config import (
    AugmentConfig,
    Config,
    DataConfig,
    InferenceConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    config_difference,
    config_to_toml,
    load_config,
    published_names,
    settings,
)
from dgmn2cli.config.schema import SECTIONS, flat
from dgmn2cli.errors import ConfigError

PUP = "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes"


def test_the_16_published_configurations_load():
    zoo = json.loads(resources.zoo_path().read_text())
    assert len(published_names()) == 16
    assert set(published_names()) == {entry["config"] for entry in zoo["segmentors"]}
    seen = set()
    for name in published_names():
        config = load_config(name)
        assert config.name == name
        assert config == load_config(f"{name}.py") == load_config(resources.config_dir() / f"{name}.toml")
        head, _, rest = name.partition("_dgmn2_")
        assert (config.model.head, config.model.backbone) == (head, rest.partition("_")[0])
        seen.add((config.model.head, config.model.backbone))
    assert len(seen) == 16


@pytest.mark.parametrize("name", published_names())
def test_their_values_are_the_published_protocol(name: str):
    config = load_config(name)
    assert config.model.num_classes == 19
    assert config.model.drop_path == 0
    assert config.augment == AugmentConfig(
        scale=(2049, 1025), ratio=(0.5, 2.0), crop=769, category_max_ratio=0.75, flip_prob=0.5, photometric=True,
        brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18,
    )  # fmt: skip
    assert config.optim == OptimConfig(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, power=0.9, min_lr=0.0)
    train = config.train
    assert (train.iters, train.batch_size, train.recipe_batch, train.accumulate) == (40_000, 2, 8, 1)
    assert (train.val_every, train.save_every, train.init, train.dtype) == (4000, 4000, "imagenet", "float32")
    assert config.inference == InferenceConfig(
        protocol="paper", scale=(2049, 1025), window=769, stride=513, ratios=(0.5, 0.75, 1, 1.25, 1.5, 1.75), flip=True
    )
    assert (config.data.kind, config.data.ignore_index) == ("cityscapes", 255)


def test_recipes_and_defaults_say_the_same():
    assert dataclasses.replace(load_config(PUP), name="x") == Config("x")


def test_a_base_is_a_recipe_or_a_file_and_later_keys_override(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.toml").write_text("name = 'not this'\n[optim]\nlr = 1e-3\neps = 1e-6\n")
    (tmp_path / "top.toml").write_text(
        "base = ['cityscapes_769x769', 'schedule_40k', './sub/mine.toml']\n[optim]\nlr = 2e-3\n"
    )
    config = load_config(tmp_path / "top.toml")
    assert config.name == "top"
    assert (config.optim.lr, config.optim.eps, config.optim.power) == (2e-3, 1e-6, 0.9)
    (tmp_path / "one.toml").write_text("base = 'sub/mine.toml'\n")
    assert load_config(str(tmp_path / "one.toml")).optim.lr == 1e-3


def test_overrides_take_toml_values_and_bare_texts():
    config = load_config(
        PUP,
        [
            "optim.lr=5e-5", "optim.lr = 6e-5", "train.init=/weights/my file.pth", 'data.root="quoted"',
            "inference.ratios=[1, 2]", "train.freeze_backbone=true", "data.train_split=2020", "name=mine",
            "augment.brightness=16",
        ],
    )  # fmt: skip
    assert config.optim.lr == 6e-5
    assert config.train.init == "/weights/my file.pth"
    assert config.data.root == "quoted"
    assert config.data.train_split == "2020"
    assert config.inference.ratios == (1.0, 2.0)
    assert config.train.freeze_backbone is True
    assert config.name == "mine"
    assert isinstance(config.augment.brightness, float)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.lr", "SECTION.KEY=VALUE"),
        ("=3", "SECTION.KEY=VALUE"),
        ("optim.lrr=3", "did you mean 'optim.lr'?"),
        ("lr=3", "did you mean 'optim.lr'?"),
        ("train.lr=3", "did you mean 'optim.lr'?"),
        ("optim=3", "unknown key"),
        ("optim.lr=fast", "'fast', wanted a finite number above 0"),
        ("optim.lr=1\n[x]\ny=2", "wanted a finite number"),
        ("optim.lr=nan", "nan, wanted a finite number"),
        ("optim.lr=inf", "inf, wanted a finite number"),
        ("optim.lr=true", "true, wanted a finite number"),
        ("train.iters=4e4", "40000.0, wanted a whole number"),
        ("train.iters=" + "9" * 5000, "wanted a whole number"),
        ("train.iters=0x" + "f" * 5000, "an enormous number, wanted a whole number"),
        ("optim.betas=" + "[" * 50_000, "wanted a list of 2"),
        ("optim.betas=[0.9]", "wanted a list of 2 finite numbers"),
        ("optim.betas=[0.9, 1.0]", "below 1"),
        ("model.head=setr_pop", "did you mean 'setr_pup'?"),
        ("name=a/b", "no slash"),
        ("train.seed=-1", "from 0"),
        ("inference.ratios=[]", "at least 1"),
        ("data.root=", "wanted a folder"),
        ("data.root=a\x1bb", "wanted a text"),
        ("a" * 10_000 + "=1", "unknown key"),
    ],
)
def test_a_bad_override_is_named(override: str, says: str):
    with pytest.raises(ConfigError) as caught:
        load_config(PUP, [override])
    assert len(caught.value.faults) == 1
    assert "--set" in caught.value.faults[0]
    assert says in caught.value.faults[0]
    assert len(caught.value.faults[0]) < 300


def test_configurations_round_trip(tmp_path: Path):
    odd = Config(
        'a "quoted" näme #',
        data=DataConfig(
            kind="folder", classes=("a", "b"), palette=((1, 2, 3), (4, 5, 6)), id_map=((7, 0), (255, 1)),
            root="C:\\data", train_images="x", reduce_zero_label=True,
        ),
        model=ModelConfig("large", "fpn", num_classes=2, drop_path=0.1),
        optim=OptimConfig(lr=1 / 3, betas=(0.1, 1e-300), eps=5e-324),
        train=TrainConfig(class_weights=(0.5, 2), init="weird 'path'", seed=2**32 - 1),
        augment=AugmentConfig(ratio=(1, 1), photometric=False),
        notes=("one", 'two "2"'),
    )  # fmt: skip
    for index, config in enumerate([odd, *(load_config(name) for name in published_names())]):
        path = tmp_path / f"{index}.toml"
        path.write_text(config_to_toml(config), encoding="utf-8")
        again = load_config(path)
        assert again == config
        assert config_to_toml(again) == config_to_toml(config)
        assert config_difference(again, config) == []


def test_the_resolved_file_holds_every_setting():
    text = config_to_toml(load_config(PUP))
    names = [setting.key.partition(".")[2] for setting in settings()]
    assert len(names) == len(flat(load_config(PUP))) == 67
    for name in names:
        assert f"\n{name} = " in text


def test_differences_are_named_with_both_values():
    config = load_config(PUP)
    other = load_config(PUP, ["optim.lr=5e-5", "inference.flip=false", "name=other", "data.root=x"])
    assert config_difference(config, other) == [
        'data.root: "data/cityscapes" -> "x"',
        "optim.lr: 0.0001 -> 5e-05",
        "inference.flip: true -> false",
    ]


def test_every_setting_is_documented():
    listed = list(settings())
    assert len(listed) == sum(len(dataclasses.fields(cls)) for cls in SECTIONS.values())
    for setting in listed:
        assert setting.help.endswith(".")
        assert setting.wanted
        assert setting.default == flat(Config("x"))[setting.key]


def test_all_faults_come_at_once_with_file_and_key(faults, tmp_path: Path):
    (tmp_path / "below.toml").write_text("[train]\niters = 0\n[optim]\nweight_decoy = 1\n")
    found = faults(
        """
        base = ["below.toml", "no_such_recipe"]
        colour = 3
        lr = 1e-3
        notes = [1]
        name = "../evil"
        [modell]
        [model]
        backbone = "tinny"
        num_classes = 1_000_000_000
        [optim]
        lr = -1.0
        betas = [nan, 0.9]
        [inference]
        window = 0
        [data.classes]
        """,
        overrides=["augment.ratio=[2, 1]", "augment.contrast=3"],
    )
    for place, text in (
        ("mine.toml: colour", "unknown key"),
        ("mine.toml: lr", "belongs in [optim]"),
        ("mine.toml: modell", "did you mean 'model'?"),
        ("mine.toml: model.backbone: 'tinny'", "did you mean 'tiny'?"),
        ("mine.toml: model.num_classes: 1000000000", "from 2 to 255"),
        ("mine.toml: optim.lr: -1.0", "above 0"),
        ("mine.toml: optim.betas: [nan, 0.9]", "finite"),
        ("mine.toml: inference.window: 0", "from 1"),
        ("mine.toml: data.classes: a table", "a list of texts"),
        ("mine.toml: name: '../evil'", "no slash"),
        ("mine.toml: notes: [1]", "a list of texts"),
        ("below.toml: train.iters: 0", "from 1"),
        ("below.toml: optim.weight_decoy", "did you mean 'weight_decay'?"),
        ("recipes/no_such_recipe.toml", "no such file"),
        ("--set: augment.ratio: [2, 1]", "the smaller first"),
        ("--set: augment.contrast: 3", "a list of 2"),
    ):
        matching = [line for line in found if line.startswith(place)]
        assert len(matching) == 1, (place, found)
        assert text in matching[0]
    assert len(found) == 16


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[optim]\nlr = 1\nlr = 2\n", "not TOML: Cannot overwrite a value (at line 3"),
        ("[optim]\nlr = 1\n[optim]\n", "not TOML: Cannot declare"),
        ("[optim\nlr = 1", "not TOML"),
        ("[optim]\nlr = ", "not TOML"),
        ("optim = 3", "wanted a table"),
        ("model = [1]", "wanted a table"),
        ("base = 3", "wanted a recipe's name or path"),
        ("base = ['']", "wanted a recipe's name or path"),
        ('base = ["a\\u0000b"]', "wanted a recipe's name or path"),
        ("base = ['./gone.toml']", "no such file"),
        ("base = ['./mine.toml']", "in a circle"),
        ("base = ['/']", "it is a folder"),
        ("x = " + "[" * 10_000, "nested too deeply"),
        ("x = " + "{a=" * 10_000, "nested too deeply"),
        ("[train]\niters = " + "9" * 5000, "not TOML"),
        ("[train]\niters = 0x" + "f" * 100_000, "an enormous number"),
        ("a" + ".a" * 100_000 + " = 1", "dots"),
        ("[optim]\nlr = 1979-05-27\n", "1979-05-27, wanted a finite number"),
        ("[optim.lr]\nx = 1\n", "a table, wanted"),
        ("[inference]\nscale = [1, 2, 3]\n", "wanted a list of 2"),
        ("[inference]\nscale = [0, 10]\n", "from 1"),
        ("[inference]\nwindow = 100\n", "inference.stride"),
        ("[data]\nclasses = ['a', 'b']\n", "one name for each"),
        ("[model]\nnum_classes = 1\n", "from 2 to 255"),
        ("[data]\nclasses = ['a']\n", "two or more"),
        ("[data]\nclasses = ['a', '" + "b" * 20_000 + "']\n", "1 to 200 characters"),
        ("[data]\nclasses = ['a', 'b\x1b[31m']\n", "not TOML: "),
        ('[data]\nclasses = ["a", "b\\u001b[31m"]\n', "control characters"),
        ("[model]\nnum_classes = 2\n[data]\nclasses = ['a', 'a']\n", "every name once"),
        ("[data]\npalette = [[1, 2, 3]]\n", "one colour for each"),
        ("[data]\npalette = [[1, 2]]\n", "a list of lists of 3"),
        ("[data]\nreduce_zero_label = true\n", "counts only with"),
        ("[data]\nkind = 'folder'\ntrain_images = 'x'\n", "counts only with"),
        (
            "[model]\nnum_classes = 2\n[data]\nkind = 'folder'\nclasses = ['a', 'b']\nval_split = 'test'\n",
            "data.val_split: 'test', but data.classes is given",
        ),
        ("[train]\nclass_weights = [1]\n", "one weight for each"),
        ("[train]\nclass_weights = [-1]\n", "from 0"),
        ("[model]\nnum_classes = 2\n[train]\nclass_weights = [0, 0]\n", "at least one above 0"),
        (
            "[model]\nnum_classes = 2\n[train]\nclass_weights = [1, 2]\nclass_weights_from = 'auto'\n",
            "wanted one of them",
        ),
        ("[train]\ninit = ' '\n", "'imagenet', 'scratch' or a path"),
        ("[optim]\nmin_lr = 1\n", "at most optim.lr"),
        ("[model]\nhead = ['fpn']\n", "wanted one of"),
        ("[model]\nnum_classes = true\n", "true, wanted a whole number"),
        ("[data]\nroot = '" + "x" * 5000 + "'\n", "wanted a text"),
    ],
)
def test_a_single_fault_is_named_with_its_file(faults, text: str, says: str):
    found = faults(text)
    assert len(found) == 1, found
    assert says in found[0]
    assert "mine.toml" in found[0] or text.startswith("base")
    assert len(found[0]) < 300


def test_a_circle_over_several_files_ends(tmp_path: Path):
    for index in range(3):
        (tmp_path / f"{index}.toml").write_text(f"base = './{(index + 1) % 3}.toml'\n")
    with pytest.raises(ConfigError, match="in a circle"):
        load_config(tmp_path / "0.toml")


def test_a_tree_of_bases_that_doubles_at_each_level_ends(tmp_path: Path):
    for index in range(30):
        (tmp_path / f"{index}.toml").write_text(f"base = ['./{index + 1}.toml', './{index + 1}.toml']\n")
    (tmp_path / "30.toml").write_text("")
    with pytest.raises(ConfigError, match="the configuration is wrong"):
        load_config(tmp_path / "0.toml")


def test_files_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "latin.toml").write_bytes(b"[data]\nroot = 'caf\xe9'\n")
    (tmp_path / "nul.py").write_bytes(b"x = 1\ny = '\0'\n")
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    with (tmp_path / "huge.py").open("wb") as file:
        file.truncate(100_000_000)
    (tmp_path / "large.toml").write_text("#" * 1_000_001)
    for name, says in (
        ("folder.toml", "it is a folder"),
        ("pipe.toml", "it is a pipe"),
        ("pipe.py", "it is a pipe"),
        ("latin.toml", "line 2 is not UTF-8 text (byte 0xe9)"),
        ("nul.py", "line 2 holds a NUL byte"),
        ("loop.toml", "symbolic links"),
        ("huge.py", "larger than 1,000,000 bytes"),
        ("large.toml", "larger than 1,000,000 bytes"),
        ("absent.toml", "no such file"),
        ("x" * 300 + ".toml", "file name too long"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name)
        assert says in str(caught.value)
        assert name in caught.value.faults[0]


@pytest.mark.parametrize(
    "name",
    ["", " ", "../../x", "no-such-model", "a\nb", "\x1b[31m", "x" * 10_000, "/", ".", "..", "a\0b", "x.toml", "a.py",
     Path("/tmp"), Path("x.json"), "/dev/null", "~", "é" * 200, PUP + ".toml.toml"],
)  # fmt: skip
def test_impossible_names_are_refused(name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert list(tmp_path.iterdir()) == []


def test_a_near_miss_of_a_published_name_is_suggested():
    with pytest.raises(ConfigError, match=f"Did you mean '{PUP}'"):
        load_config("setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscape")


def test_a_file_in_the_working_folder_needs_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text("[optim]\nlr = 1\n")
    assert load_config("mine.toml").optim.lr == 1
    Path(f"{PUP}.py").write_text("import os\n")
    with pytest.raises(ConfigError, match="'import os' is not read"):
        load_config(f"{PUP}.py")


def test_line_ends_and_byte_order_marks_of_other_systems_are_read(tmp_path: Path):
    (tmp_path / "dos.toml").write_bytes(b"\xef\xbb\xbf[optim]\r\nlr = 1\r\n")
    assert load_config(tmp_path / "dos.toml").optim.lr == 1


def test_100000_wrong_keys_are_reported_quickly(faults):
    found = faults("[optim]\n" + "".join(f"lr{index} = 1\n" for index in range(70_000)))
    assert len(found) == 70_000
    assert "did you mean" in found[0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModelConfig(num_classes=0), "model.num_classes: 0"),
        (lambda: ModelConfig(backbone="huge"), "model.backbone: 'huge'"),
        (lambda: InferenceConfig(window=10), "inference.stride: 513"),
        (lambda: OptimConfig(lr=float("nan")), "optim.lr: nan"),
        (lambda: Config("x", model=ModelConfig(num_classes=2), data=DataConfig(classes=("a",))), "data.classes"),
        (lambda: Config(""), "name"),
        (lambda: dataclasses.replace(ModelConfig(), num_classes=256), "model.num_classes: 256"),
    ],
)
def test_the_dataclasses_check_themselves(make, says: str):
    with pytest.raises(ConfigError) as caught:
        make()
    assert says in caught.value.faults[0]


def test_settings_cannot_be_changed_afterwards():
    config = Config("x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.lr = 1.0  # type: ignore[misc]  # the point of the test
    assert AugmentConfig(scale=[10, 20], brightness=3) == AugmentConfig(scale=(10, 20), brightness=3.0)  # type: ignore[arg-type]


def test_configurations_need_no_torch():
    code = (
        "import sys; from dgmn2cli.config import load_config, published_names; "
        "[load_config(name) for name in published_names()]; "
        "assert not {'torch', 'numpy', 'cv2'} & set(sys.modules); print(len(published_names()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "16"
