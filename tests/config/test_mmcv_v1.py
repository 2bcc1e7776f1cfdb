"""MMSegmentation's 1.x configurations: read as the 0.x ones are, or named for what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmcv_samples import MODELS, PUP, bare, config_name, v1_text

from dgmn2cli.config import (
    config_difference,
    load_config,
    load_config_text,
)
from dgmn2cli.errors import ConfigError


@pytest.mark.parametrize(("head", "size"), MODELS)
def test_the_1_x_format_equals_the_native_file(head: str, size: str):
    config = load_config_text(v1_text(head, size), "v1")
    assert bare(config) == bare(load_config(config_name(head, size)))
    assert any("1.x format" in note for note in config.notes)


V1_VARIANTS: dict[str, tuple[str, str, dict[str, object]]] = {
    "rate": ("lr=0.0001,", "lr=6e-5,", {"optim.lr": 6e-5}),
    "iterations": ("40000", "80000", {"train.iters": 80000}),
    "batch": ("batch_size=2, num_workers=2", "batch_size=4, num_workers=8",
              {"train.batch_size": 4, "data.workers": 8}),
    "interval": ("val_interval=4000", "val_interval=500", {"train.val_every": 500}),
    "saving": ("by_epoch=False, interval=4000", "by_epoch=False, interval=7, max_keep_ckpts=2",
               {"train.save_every": 7, "train.keep": 2}),
    "power": ("eta_min=0.0, power=0.9", "eta_min=1e-6", {"optim.min_lr": 1e-6, "optim.power": 1.0}),
    "seed": ("resume = False", "randomness = dict(seed=7)", {"train.seed": 7}),
    "flip": ("prob=0.5", "prob=0.25", {"augment.flip_prob": 0.25}),
    "no weights": (",\n        init_cfg=dict(type='Pretrained', checkpoint='pretrained/dgmn2_tiny_model.pth')", "",
                   {"train.init": "scratch"}),
    "root": ("'data/cityscapes/'", "'/data/c'", {"data.root": "/data/c"}),
}  # fmt: skip


@pytest.mark.parametrize("variant", V1_VARIANTS)
def test_variants_of_the_1_x_format_change_what_they_say(variant: str):
    old, new, wanted = V1_VARIANTS[variant]
    text = v1_text()
    assert old in text
    config, original = load_config_text(text.replace(old, new), "v1"), load_config(PUP)
    for key, value in wanted.items():
        section, _, name = key.partition(".")
        assert getattr(getattr(config, section), name) == value
    assert {line.partition(":")[0] for line in config_difference(original, config)} == set(wanted)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("val_dataloader = dict(", "val_dataloader = [1]\nx = dict(", "val_dataloader: [1], wanted a dict"),
        ("type='OptimWrapper'", "type='AmpOptimWrapper'", "optim_wrapper.type: 'AmpOptimWrapper'"),
        ("clip_grad=None", "clip_grad=dict(max_norm=1)", "optim_wrapper.clip_grad"),
        ("clip_grad=None", "accumulative_counts=2", "optim_wrapper.accumulative_counts: 2"),
        ("type='AdamW'", "type='SGD'", "optim_wrapper.optimizer.type: 'SGD'"),
        ("param_scheduler = [", "param_scheduler = [dict(type='LinearLR'), ", "param_scheduler.type"),
        ("end=40000", "end=20000", "param_scheduler.end: 20000"),
        ("IterBasedTrainLoop", "EpochBasedTrainLoop", "train_cfg.type: 'EpochBasedTrainLoop'"),
        ("mean=[123.675, 116.28, 103.53]", "mean=[0, 0, 0]", "train_dataloader.dataset.pipeline"),
        ("type='RandomResize'", "type='RandomChoiceResize'", "train_dataloader.dataset.pipeline[2].type"),
        ("sampler_seed=dict(", "ema=dict(type='EMAHook'), sampler_seed=dict(", "default_hooks or custom_hooks"),
        ("type='dgmn2_tiny'", "type='ResNet'", "model.backbone.type: 'ResNet'"),
        ("size=crop_size)", "size=crop_size, test_cfg=dict(size_divisor=32))", "train_dataloader.dataset.pipeline"),
    ],
)
def test_what_has_no_counterpart_in_the_1_x_format_is_named_in_its_own_keys(old: str, new: str, place: str):
    text = v1_text()
    assert old in text
    with pytest.raises(ConfigError) as caught:
        load_config_text(text.replace(old, new), "v1")
    assert "1.x format" in caught.value.faults[0]
    assert any(fault.startswith(f"v1: {place}") for fault in caught.value.faults[1:]), caught.value.faults


def test_the_1_x_format_is_known_when_little_of_it_can_be_read(tmp_path: Path):
    for text in (
        "default_scope = 'mmseg'\n",
        "model = dict(type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor'))\n",
        "train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)\n",
        "optim_wrapper = 3\nparam_scheduler = 5\ntrain_dataloader = []\ndefault_hooks = 'x'\n",
    ):
        with pytest.raises(ConfigError) as caught:
            load_config_text(text, "v1")
        assert "1.x format" in caught.value.faults[0]
    path = tmp_path / "configs" / "mine.py"
    path.parent.mkdir()
    path.write_text("_base_ = ['../_base_/default_runtime.py', '../_base_/schedules/schedule_40k.py']\n" + v1_text())
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.faults) == 1
    assert "1.x format" in caught.value.faults[0]
    assert "absent: ../_base_/default_runtime.py" in caught.value.faults[0]
    path.write_text("_base_ = '../_base_/models/fcn_r50.py'\ntrain_dataloader = dict(batch_size=4)\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "1.x format" in caught.value.faults[0]
    assert "no such file" in caught.value.faults[1]
    path.write_text("from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == ["mine.py:3"]
    assert "1.x format" in caught.value.faults[0]
