"""Files in the mmcv language: read without executing, merged as mmcv does, mapped to our settings or named."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmcv_samples import DATA, MODELS, PUP, SCHEDULE, bare, config_name, flat_text, model_text

from dgmn2cli.config import (
    config_difference,
    load_config,
    load_config_text,
    published_names,
    read_mmcv_file,
)
from dgmn2cli.config.mmcv.stock import CITYSCAPES_CLASSES, stock_file
from dgmn2cli.config.mmcv.syntax import parse
from dgmn2cli.data.cityscapes import LABELS
from dgmn2cli.errors import ConfigError


def test_all_16_are_covered():
    assert {config_name(head, size) for head, size in MODELS} == set(published_names())
    assert len(MODELS) == 16


@pytest.mark.parametrize(("head", "size"), MODELS)
def test_a_tree_of_base_files_equals_the_native_file(head: str, size: str, published_tree: Path):
    name = config_name(head, size)
    config = load_config(published_tree / f"{name}.py")
    assert config.name == name
    assert bare(config) == bare(load_config(name))
    assert not any("absent" in note for note in config.notes)


@pytest.mark.parametrize(("head", "size"), MODELS)
def test_a_flat_text_equals_the_native_file(head: str, size: str):
    config = load_config_text(flat_text(head, size), "meta of x.pth")
    assert bare(config) == bare(load_config(config_name(head, size)))


@pytest.mark.parametrize(("head", "size"), MODELS)
def test_a_file_without_its_base_files_equals_the_native_file(head: str, size: str, tmp_path: Path):
    bases = [
        f"models/{head}_dgmn2.py",
        "datasets/cityscapes_769x769.py",
        "default_runtime.py",
        "schedules/schedule_40k.py",
    ]
    text = f"_base_ = {[f'./_base_/{base}' for base in bases]}\n" + model_text(head, size)
    path = tmp_path / "alone.py"
    path.write_text(text)
    config = load_config(path)
    assert bare(config) == bare(load_config(config_name(head, size)))
    for base in bases:
        assert any(f"./_base_/{base} is absent" in note for note in config.notes)
    again = load_config_text(text, "text")
    assert bare(again) == bare(config)


def test_the_stock_files_are_known_by_their_place_only():
    assert stock_file(Path("a/b/_base_/default_runtime.py"))
    assert stock_file(Path("../_base_/schedules/schedule_40k.py"))
    assert stock_file(Path("schedules/schedule_40k.py")) is None
    assert stock_file(Path("_base_/schedules/schedule_80k.py")) is None
    assert stock_file(Path("_base_")) is None


def test_the_class_names_are_those_of_the_data_set():
    ours = {label.train_id: label.name for label in LABELS if label.train_id != 255}
    assert tuple(ours[index] for index in range(19)) == CITYSCAPES_CLASSES


VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "classes": ("model = dict(decode_head=dict(num_classes=7))", {"model.num_classes": 7}),
    "rate": ("optimizer = dict(lr=6e-5, betas=(0.8, 0.99), eps=1e-6)",
             {"optim.lr": 6e-5, "optim.betas": (0.8, 0.99), "optim.eps": 1e-6}),
    "iterations": ("runner = dict(max_iters=80000)", {"train.iters": 80000}),
    "old iterations": ("runner = None\ntotal_iters = 80 * 1000", {"train.iters": 80000}),
    "samples": ("data = dict(samples_per_gpu=4, workers_per_gpu=8)", {"train.batch_size": 4, "data.workers": 8}),
    "window": ("model = dict(test_cfg=dict(crop_size=(513, 513), stride=(341, 341)))",
               {"inference.window": 513, "inference.stride": 341}),
    "own weights": ("model = dict(pretrained='my/weights.pth')", {"train.init": "my/weights.pth"}),
    "no weights": ("model = dict(pretrained=None)", {"train.init": "scratch"}),
    "whole model": ("load_from = 'seg.pth'", {"train.init": "seg.pth"}),
    "intervals": ("checkpoint_config = dict(interval=100, max_keep_ckpts=3)\nevaluation = dict(interval=50)",
                  {"train.save_every": 100, "train.keep": 3, "train.val_every": 50}),
    "seed": ("seed = 5", {"train.seed": 5}),
    "weights": (f"model = dict(decode_head=dict(loss_decode=dict(class_weight={[1.0] * 18 + [2.5]})))",
                {"train.class_weights": (*[1.0] * 18, 2.5)}),
    "drop path": ("model = dict(backbone=dict(drop_path_rate=0.1))", {"model.drop_path": 0.1}),
    "plain norm": ("n = dict(type='BN')\nmodel = dict(backbone=dict(norm_cfg=n), decode_head=dict(norm_cfg=n))",
                   {"train.sync_bn": False}),
    "power": ("lr_config = dict(_delete_=True, policy='poly', by_epoch=False)", {"optim.power": 1.0}),
    "optimizer defaults": ("optimizer = dict(_delete_=True, type='AdamW')",
                           {"optim.lr": 1e-3, "optim.weight_decay": 1e-2}),
    "root": ("r = '/data/'\ndata = dict(train=dict(data_root=r), val=dict(data_root=r), test=dict(data_root=r))",
             {"data.root": "/data"}),
    "split": ("data = dict(train=dict(img_dir='leftImg8bit/train_extra', ann_dir='gtFine/train_extra'))",
              {"data.train_split": "train_extra"}),
    "palette": (f"data = dict(train=dict(palette={[[1, 2, 3]] * 19}))", {"data.palette": ((1, 2, 3),) * 19}),
    "crop": (
        "size = (513, 513)\ndata = dict(train=dict(pipeline=["
        "dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),"
        "dict(type='Resize', img_scale=(1025, 513), ratio_range=(0.75, 1.5)),"
        "dict(type='RandomCrop', crop_size=size), dict(type='Normalize', mean=[123.675, 116.28, 103.53],"
        "std=[58.395, 57.12, 57.375]), dict(type='Pad', size=size, pad_val=0, seg_pad_val=255),"
        "dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_semantic_seg'])]))",
        {"augment.crop": 513, "augment.scale": (1025, 513), "augment.ratio": (0.75, 1.5),
         "augment.category_max_ratio": 1.0, "augment.flip_prob": 0.0, "augment.photometric": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_users_change_what_they_say_and_nothing_else(variant: str, published_tree: Path):
    text, wanted = VARIANTS[variant]
    path = published_tree / "mine.py"
    path.write_text(f"_base_ = './{PUP}.py'\n{text}\n")
    config = load_config(path)
    original = load_config(PUP)
    for key, value in wanted.items():
        section, _, name = key.partition(".")
        assert getattr(getattr(config, section), name) == value
    assert {line.partition(":")[0] for line in config_difference(original, config)} == set(wanted)


CUSTOM = """
common = dict(type='CustomDataset', data_root='my', classes=['sky', 'ground'], palette=[[0, 0, 9], [9, 9, 0]],
    img_suffix='.png', reduce_zero_label=True)
data = dict(
    train=dict(img_dir='a/t', ann_dir='b/t', pipeline=train_pipeline, **common),
    val=dict(img_dir='a/v', ann_dir='b/v', pipeline=test_pipeline, **common))
"""


def custom_text() -> str:
    """The small FPN model on a data set of two classes."""
    model = model_text("fpn", "small").replace("num_classes=19", "num_classes=2")
    data = DATA.replace("dict(type='LoadAnnotations')", "dict(type='LoadAnnotations', reduce_zero_label=True)")
    return model + data.partition("data = ")[0] + CUSTOM + SCHEDULE


def test_a_custom_data_set_becomes_a_folder():
    data = load_config_text(custom_text(), "custom").data
    assert (data.kind, data.root, data.classes) == ("folder", "my", ("sky", "ground"))
    assert data.palette == ((0, 0, 9), (9, 9, 0))
    assert (data.train_images, data.train_labels, data.val_images, data.val_labels) == ("a/t", "b/t", "a/v", "b/v")
    assert (data.image_suffix, data.label_suffix, data.reduce_zero_label) == (".png", ".png", True)


def test_a_selection_of_the_cityscapes_classes_becomes_a_folder_with_an_id_map(published_tree: Path):
    path = published_tree / "mine.py"
    path.write_text(
        f"_base_ = './{PUP}.py'\nc = ('car', 'road')\nx = dict(classes=c)\n"
        "data = dict(train=x, val=x, test=x)\nmodel = dict(decode_head=dict(num_classes=2))\n"
    )
    data = load_config(path).data
    assert (data.kind, data.classes) == ("folder", ("car", "road"))
    assert (data.train_images, data.val_labels) == ("leftImg8bit/train", "gtFine/val")
    assert (data.image_suffix, data.label_suffix) == ("_leftImg8bit.png", "_gtFine_labelTrainIds.png")
    ids = dict(data.id_map)
    assert len(ids) == 19
    assert (ids[0], ids[13]) == (1, 0)
    assert {ids[index] for index in range(19) if index not in (0, 13)} == {255}


def test_the_multi_scale_test_is_taken_over():
    text = flat_text().replace("flip=False", "img_ratios=[0.5, 1.0], flip=True")
    config = load_config_text(text, "ms")
    assert config.inference.ratios == (0.5, 1.0)
    assert config.inference.flip is True
    assert any("--ms-flip" in note for note in config.notes)


FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "optimizer": ("optimizer = dict(type='SGD', momentum=0.9)",
                  ("optimizer.type: 'SGD', wanted 'AdamW'", "optimizer.momentum: 0.9: this key has no counterpart")),
    "auxiliary": ("model = dict(auxiliary_head=dict(type='FCNHead'))", ("model.auxiliary_head: a table",)),
    "clipping": ("optimizer_config = dict(grad_clip=dict(max_norm=1))", ("optimizer_config.grad_clip",)),
    "groups": ("optimizer = dict(paramwise_cfg=dict(norm_decay_mult=0))", ("optimizer.paramwise_cfg",)),
    "warm-up": ("lr_config = dict(warmup='linear', warmup_iters=1500)", ("lr_config.warmup: 'linear'",)),
    "policy": ("lr_config = dict(policy='step')", ("lr_config.policy: 'step', wanted 'poly'",)),
    "epochs": ("runner = dict(_delete_=True, type='EpochBasedRunner', max_epochs=3)",
               ("runner.type", "runner.max_epochs")),
    "half": ("fp16 = dict(loss_scale=512.)", ("fp16",)),
    "hooks": ("custom_hooks = [dict(type='EMAHook')]", ("custom_hooks",)),
    "backbone": ("model = dict(backbone=dict(type='ResNet'))", ("model.backbone.type: 'ResNet'",)),
    "head": ("model = dict(decode_head=dict(type='PSPHead'))", ("model.decode_head.type: 'PSPHead'",)),
    "convs": ("model = dict(decode_head=dict(num_conv=3))", ("model.decode_head.num_conv: 3, wanted 4 or 2",)),
    "corners": ("model = dict(decode_head=dict(align_corners=False))", ("model.decode_head.align_corners",)),
    "output": ("model = dict(backbone=dict(output='neck'))", ("model.backbone.output: 'neck', wanted 'decode_head'",)),
    "loss": ("model = dict(decode_head=dict(loss_decode=dict(type='DiceLoss')))",
             ("model.decode_head.loss_decode.type",)),
    "sampler": ("model = dict(decode_head=dict(sampler=dict(type='OHEMPixelSampler')))",
                ("model.decode_head.sampler",)),
    "norm": ("model = dict(decode_head=dict(norm_cfg=dict(type='GN', num_groups=3)))",
             ("model.decode_head.norm_cfg.type", "model.decode_head.norm_cfg.num_groups")),
    "mixed norms": ("model = dict(decode_head=dict(norm_cfg=dict(type='BN')))", ("model.decode_head.norm_cfg.type",)),
    "frozen norm": ("model = dict(decode_head=dict(norm_cfg=dict(requires_grad=False)))",
                    ("model.decode_head.norm_cfg.requires_grad",)),
    "whole": ("model = dict(test_cfg=dict(_delete_=True, mode='whole'))", ("model.test_cfg.mode: 'whole'",)),
    "oblong": ("model = dict(test_cfg=dict(crop_size=(512, 1024)))", ("model.test_cfg.crop_size: [512, 1024]",)),
    "gaps": ("model = dict(test_cfg=dict(stride=(900, 900)))", ("model.test_cfg.stride: inference.stride: 900",)),
    "misspelt": ("optimzer = dict(lr=1)", ("optimzer: unknown key; did you mean 'optimizer'?",)),
    "misspelt below": ("model = dict(decode_head=dict(num_clases=7))",
                       ("model.decode_head.num_clases: 7: this key has no counterpart here; did you mean",)),
    "other weights": ("model = dict(pretrained='x/dgmn2_large_model.pth')", ("model.pretrained",)),
    "data set": ("data = dict(train=dict(type='ADE20KDataset'))", ("data.train.type: 'ADE20KDataset'", "data.val")),
    "roots": ("data = dict(train=dict(data_root='x'))", ("data.val: its root",)),
    "list file": ("data = dict(train=dict(split='train.txt'))", ("data.train.split",)),
    "lr": ("optimizer = dict(lr=-1)", ("optimizer.lr: optim.lr: -1, wanted a finite number above 0",)),
    "iterations": ("runner = dict(max_iters='many')", ("runner.max_iters: train.iters: 'many'",)),
    "no dict": ("model = 3", ("model: 3, wanted a dict",)),
    "no dict below": ("optimizer = []", ("optimizer: [], wanted a dict",)),
    "type clash": ("norm_cfg = 3\nmodel = dict(pretrained=dict(a=1))", ("model.pretrained: a dict, but",)),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_what_would_change_results_and_has_no_counterpart_is_a_fault(case: str, published_tree: Path):
    text, wanted = FAULTS[case]
    path = published_tree / "mine.py"
    path.write_text(f"_base_ = './{PUP}.py'\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    for line in wanted:
        assert any(fault.startswith(f"mine.py: {line}") for fault in caught.value.faults), caught.value.faults


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("dict(type='PhotoMetricDistortion'), ", "dict(type='RandomRotate', prob=0.5), ", "'RandomRotate', wanted"),
        ("dict(type='LoadAnnotations'),", "", "the step 'LoadAnnotations' is missing"),
        ("dict(type='RandomFlip', prob=0.5)", "dict(type='Resize', img_scale=(1, 1), ratio_range=(1, 1))", "too late"),
        ("prob=0.5", "prob=0.5, direction='vertical'", "direction: 'vertical'"),
        ("prob=0.5", "prob=1.5", "augment.flip_prob: 1.5"),
        ("ratio_range=(0.5, 2.0)", "ratio_range=(2.0, 0.5)", "the smaller first"),
        ("ratio_range=(0.5, 2.0)", "multiscale_mode='value'", "multiscale_mode"),
        ("mean=[123.675, 116.28, 103.53]", "mean=[0, 0, 0]", "mean: [0, 0, 0]"),
        ("seg_pad_val=255", "seg_pad_val=0", "ignore_index (absent) says 255"),
        ("size=crop_size, pad_val=0", "size=(513, 513), pad_val=0", "513, but"),
        ("transforms=[", "transforms=[dict(type='Pad', size_divisor=32), ", "'Pad', wanted"),
        ("flip=False", "flip=True", "True without img_ratios"),
        ("img_scale=(2049, 1025), flip", "img_scale=[(1, 1), (2, 2), (3, 3)], flip", "wanted two numbers"),
        ("pipeline=train_pipeline", "pipeline=3", "wanted a list of dicts"),
        (", pipeline=test_pipeline))", "))", "pipeline: absent"),
    ],
)  # fmt: skip
def test_pipelines_other_than_ours_are_faults(old: str, new: str, says: str):
    text = flat_text()
    assert old in text
    with pytest.raises(ConfigError) as caught:
        load_config_text(text.replace(old, new), "x")
    assert any(says in fault for fault in caught.value.faults), caught.value.faults


def test_harmless_keys_and_unused_names_are_notes(published_tree: Path):
    path = published_tree / "mine.py"
    path.write_text(
        f"_base_ = './{PUP}.py'\nfind_unused_parameters = True\nmy_word = 3\ndata_root = '/elsewhere'\n"
        "log_config = dict(interval=1)\nevaluation = dict(metric=['mIoU', 'mDice'])\n"
    )
    notes = load_config(path).notes
    assert any("find_unused_parameters" in note and "log_config" in note for note in notes)
    assert any("nothing uses 'my_word'" in note for note in notes)
    assert any(note.startswith("data_root: has no effect") for note in notes)
    assert any(note.startswith("evaluation.metric") for note in notes)


def test_merging_is_mmcvs(tmp_path: Path):
    (tmp_path / "base.py").write_text("a = dict(b=dict(c=1, d=[1, 2]), e=2)\nf = [dict(g=1)]\nh = (1, 2)\n")
    (tmp_path / "other.py").write_text("i = 'x' 'y'\nj = 2 * 3 + 4 / 8 - 2 ** 3 // 3 % 4\nk = -1.5e3\n")
    (tmp_path / "top.py").write_text(
        "'''A docstring.'''\n_base_ = ['./base.py', 'other.py']\n"
        "a = dict(b=dict(c=3), e=dict(_delete_=True, z=1), n=dict(_delete_=True, o=1))\nf = [2]\n"
        "l = m = {'p': (1,), **dict(q=None)}\n"
        "r = list((1, 2)) + [3]\ns = tuple([l, m])\n"
    )
    document = read_mmcv_file(tmp_path / "top.py")
    assert document.values == {
        "a": {"b": {"c": 3, "d": [1, 2]}, "e": {"z": 1}, "n": {"o": 1}},
        "f": [2], "h": (1, 2), "i": "xy", "j": 2 * 3 + 4 / 8 - 2**3 // 3 % 4, "k": -1500.0,
        "l": {"p": (1,), "q": None}, "m": {"p": (1,), "q": None}, "r": [1, 2, 3],
        "s": ({"p": (1,), "q": None}, {"p": (1,), "q": None}),
    }  # fmt: skip
    assert document.used == {"l", "m"}


def refused(text: str, tmp_path: Path, **files: str) -> tuple[str, ...]:
    for name, content in files.items():
        (tmp_path / f"{name}.py").write_text(content)
    (tmp_path / "top.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_mmcv_file(tmp_path / "top.py")
    assert caught.value.exit_code == 2
    return caught.value.faults


def test_bases_that_cannot_be_had_are_named(tmp_path: Path):
    assert "no such file" in refused("_base_ = '../_base_/models/other.py'", tmp_path)[0]
    assert "circle" in refused("_base_ = './top.py'", tmp_path)[0]
    assert "circle" in refused("_base_ = './a.py'", tmp_path, a="_base_ = './top.py'")[0]
    assert "wanted a path or a list" in refused("_base_ = 3", tmp_path)[0]
    assert "wanted a path or a list" in refused("_base_ = ['']", tmp_path)[0]
    assert "it is a folder" in refused("_base_ = '..'", tmp_path)[0]
    assert (
        "comes from './b.py' and another base"
        in refused("_base_ = ['./a.py', './b.py']", tmp_path, a="x=1", b="x=1")[0]
    )
    assert "'x' is not assigned above" in refused("_base_ = ['./a.py']\ny = x", tmp_path, a="x=1")[0]
    deep = {f"f{index}": f"_base_ = './f{index + 1}.py'" for index in range(40)}
    assert "levels" in refused("_base_ = './f0.py'", tmp_path, **deep)[0]
    wide = {f"f{index}": f"_base_ = ['./f{index + 1}.py', './f{index + 1}.py']" for index in range(7)}
    assert any("files of bases" in fault for fault in refused("_base_ = './f0.py'", tmp_path, **wide, f7=""))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import os", "top.py:1: 'import os' is not read: this reader executes nothing"),
        ("\n\nfrom os import system", "top.py:3: 'from os import system' is not read"),
        ("x = __import__('os').system('touch {proof}')", "top.py:1: '__import__('os').system("),
        ("x = open('{proof}', 'w')", "'open('"),
        ("x = eval('1')", "'eval('1')' is not read"),
        ("x = (lambda: 1)()", "'(lambda: 1)()' is not read"),
        ("open('{proof}', 'w')", "is not read"),
        ("x = [open('{proof}', 'w') for i in (1,)]", "'[open("),
        ("x = f\"{open('{proof}', 'w')}\"", "'f"),
        ("@open\ndef f(x=open('{proof}', 'w')): pass", "top.py:2: 'def f("),
        ("class A(metaclass=open): pass", "'class A(metaclass=open): pass' is not read"),
        ("x = dict.fromkeys('a')", "'dict.fromkeys('a')' is not read"),
        ("x = 1\nx.y = 2", "top.py:2: 'x.y = 2' is not read: it assigns to no plain name"),
        ("x = dict(a=1)\nx['a'] = 2", "top.py:2: 'x['a'] = 2' is not read"),
        ("a, b = 1, 2", "'a, b = 1, 2' is not read"),
        ("x: int = 3", "'x: int = 3' is not read"),
        ("x = 1\nx += 1", "top.py:2: 'x += 1' is not read"),
        ("dict = 3", "'dict = 3' is not read"),
        ("del x", "is not read"),
        ("if True:\n    x = 1", "is not read"),
        ("x = [1, 2][0]", "'[1, 2][0]' is not read"),
        ("x = 1 if True else 2", "'1 if True else 2' is not read"),
        ("x = not 1", "'not 1' is not read"),
        ("x = 1 < 2", "is not read"),
        ("x = {1, 2}", "'{1, 2}' is not read"),
        ("x = b'bytes'", "'b'bytes'' is not read"),
        ("x = 1j", "'1j' is not read"),
        ("x = ...", "is not read"),
        ("x = [*'ab']", "'*'ab']' is not read"),
        ("x = dict([('a', 1)])", "keywords only"),
        ("x = dict(a=1, a=2)", "'a' is given twice"),
        ("x = dict(a=1, **dict(a=2))", "'a' is given twice"),
        ("x = {'a': 1, 'a': 2}", "'a' is given twice"),
        ("x = {1.5: 2}", "the key 1.5"),
        ("x = dict(**3)", "** before 3"),
        ("x = list(1)", "with one list or tuple"),
        ("x = list(a=[])", "without keywords"),
        ("x = range(10**9)", "up to 4096"),
        ("x = range(0, 1, 0)", "one to three whole numbers"),
        ("x = 10 ** 10 ** 10", "cannot be done"),
        ("x = 2 ** 65", "cannot be done"),
        ("x = 2 ** 64", "an enormous number"),
        ("x = (-2) ** 0.5", "wanted a finite number"),
        ("x = 1 / 0", "cannot be done"),
        ("x = 1e400", "wanted a finite number"),
        ("x = 1 << 3", "operator"),
        ("x = 'a' * 10 ** 9", "arithmetic with 'a'"),
        ("x = [0] * 10 ** 9", "arithmetic with [0]"),
        ("x = True + 1", "arithmetic with true"),
        ("x = y", "'y' is not assigned above"),
        ("x = os\ny = x", "'x' could not be read (above)"),
        ("x = '{{ fileDirname }}/a'", "the template {{ fileDirname }} is not read"),
        ("x = {{ _base_.model }}", "the template {{ _base_.model }} is not read"),
        ("x = (1", "not Python"),
        ("x = 'abc", "not Python"),
        ("  x = 1", "not Python"),
        ("x = ¬", "not Python"),
        ("x = " + "9" * 5000, "not Python"),
        ("x = 0x" + "f" * 5000, "an enormous number"),
        ("x = " + "[" * 10_000, "brackets in brackets"),
        ("x = " + "-" * 100_000 + "1", "nested too deeply"),
        ("x = 1" + " + 1" * 100, "50 deep"),
        ("x = 1" + " + 1" * 100_000, "nested too deeply"),
        ("x = a" + "()" * 100_000, "nested too deeply"),
    ],
)
def test_nothing_is_executed_and_everything_foreign_is_named(text: str, says: str, tmp_path: Path):
    proof = tmp_path / "proof"
    found = refused(text.replace("{proof}", str(proof)), tmp_path)
    assert any(says in fault for fault in found), found
    assert all(fault.startswith("top.py") for fault in found)
    assert not proof.exists()


@pytest.mark.parametrize(
    "step", ["[a{0}, a{0}, a{0}, a{0}]", "a{0} + a{0}", "[a{0}]", "dict(x=a{0}, y=a{0}, **dict(z=a{0}))"]
)
def test_a_few_lines_cannot_stand_for_a_billion_values(step: str):
    lines = ["a0 = [1]", *(f"a{index + 1} = {step.format(index)}" for index in range(200))]
    parsed = parse("\n".join(lines), "laugh")
    assert any("values" in fault or "a sum longer" in fault for fault in parsed.faults)


def test_texts_from_checkpoints_may_be_anything(tmp_path: Path):
    for text in ("", "\0", "\ud800", "x = '\ud800'", "#" * 2_000_000, "not a config", "\x1b[31m", "é" * 600_000):
        with pytest.raises(ConfigError) as caught:
            load_config_text(text, "meta\nof \x1b x.pth")
        assert str(caught.value).isprintable()


def test_a_name_assigned_twice_is_noted():
    config = load_config_text(flat_text() + "\nrunner = dict(type='IterBasedRunner', max_iters=10)\n", "x")
    assert config.train.iters == 10
    assert any("runner is assigned again" in note for note in config.notes)


def test_what_is_not_said_is_ours_and_noted():
    config = load_config_text(model_text("setr_mla", "small"), "x")
    assert bare(config) == bare(load_config(config_name("setr_mla", "small")))
    for key in ("data", "optimizer", "lr_config", "runner.max_iters"):
        assert any(note.startswith(f"{key}: absent") for note in config.notes)
