"""What a file is said to be: its network, its hash's standing, its training, an optimiser, its own digest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgmn2cli import zoo
from dgmn2cli.checkpoint.describe import FileInfo, describe
from dgmn2cli.checkpoint.weights import read_checkpoint, write_checkpoint
from dgmn2cli.cli.info import known_hashes
from dgmn2cli.config import config_to_toml, load_config
from dgmn2cli.errors import Dgmn2Error
from dgmn2cli.model.backbone import Backbone, Classifier
from dgmn2cli.training.state import TrainState, save_state
from dgmn2cli.zoo import cache as caching

MANIFEST = zoo.load_zoo()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return Classifier("tiny").state_dict()


def about(tmp_path: Path, manifest: zoo.Zoo = MANIFEST, **content: Any) -> FileInfo:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    return describe(path, known_hashes(manifest, tmp_path / "cache"))


def test_a_published_layout(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(250_000), "step": 3}}, "param_groups": []}
    meta = {"iter": 40000, "epoch": 107, "CLASSES": ["road", "car"], "mmcv_version": "1.3.8", "env_info": "a\nb\nc"}
    found = about(tmp_path, state_dict=weights, meta=meta, optimizer=optimizer, hooks=[1, 2])
    assert (found.model, found.exact) == ("dgmn2_tiny", True)
    assert (found.network.key, found.network.classes) == ("dgmn2_tiny", 1000)
    assert (found.iteration, found.epoch) == (40000, 107)
    assert found.meta == {"CLASSES": "2 items: road, car", "mmcv_version": "1.3.8", "env_info": "text of 3 lines"}
    assert found.optimizer == "state of 1 parameters, 1.0 MB"
    assert found.others == ("hooks: 2 items",)
    file = found.file
    assert (file.format, file.wrapper, file.prefixes, found.digest) == ("pth", "state_dict", (), "none")
    assert found.dtypes == {"float32": sum(value.is_floating_point() for value in weights.values()), "int64": 6}
    assert found.file.sha256 == read_checkpoint(tmp_path / "file.pth").sha256


def test_near_misses_and_other_number_types(tmp_path: Path) -> None:
    half = {f"module.{key}": value.half() for key, value in Classifier("tiny", 7).state_dict().items()}
    found = about(tmp_path, model=half)
    assert found.model == "dgmn2_tiny with 7 classes"
    assert (found.file.wrapper, found.file.prefixes) == ("model", ("module.",))
    assert found.dtypes == {"float16": len(half)}
    del half["module.block1.0.norm1.bias"]
    found = about(tmp_path, model=half)
    assert found.model == "dgmn2_tiny with 7 classes, but 1 tensor is missing"
    assert found.network.differences == {"missing": ["block1.0.norm1.bias"]}
    assert about(tmp_path, x=torch.ones(3)).model == "no DGMN2 network"


def test_the_standing_of_a_hash(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    found = about(tmp_path, model=weights)
    assert (found.hash_state, found.hash_of, found.hash_note) == ("unknown", "", "")
    entry, cache = MANIFEST.backbone("tiny"), tmp_path / "cache"
    caching.record(entry, cache, sha256="1" * 64, size=1, source="here")
    assert (
        about(tmp_path, model=weights).hash_note == f"it is not the dgmn2_tiny in the cache, whose hash is {'1' * 64}"
    )
    caching.record(entry, cache, sha256=found.file.sha256, size=1, source="here")
    recorded = about(tmp_path, model=weights)
    assert (recorded.hash_state, recorded.hash_of) == ("recorded", "dgmn2_tiny")
    pinned = dataclasses.replace(MANIFEST, backbones=(dataclasses.replace(entry, sha256=found.file.sha256),))
    assert about(tmp_path, pinned, model=weights).hash_state == "pinned"
    other = dataclasses.replace(MANIFEST, backbones=(dataclasses.replace(entry, sha256="0" * 64),))
    assert "not the published dgmn2_tiny" in about(tmp_path, other, model={**weights}, epoch=1).hash_note


MMCV = "_base_ = ['../_base_/models/fpn_r50.py']\nmodel = dict(backbone=dict(type='dgmn2_tiny'))"


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [
        (config_to_toml(load_config(zoo.find("fpn-small").config)), "dgmn2 TOML", "fpn-small, 19 classes, 40000 it"),
        ("import os\nos.system('x')", "MMSegmentation", "not understood"),
        ("x = " + "[" * 5000, "MMSegmentation", "not understood"),
        ("a" + ".b" * 100_000 + " = 1", "MMSegmentation", "not understood"),
        ("[model]\nhead = [[1]]\n[train]\niters = '\x1b[31m'", "MMSegmentation", "not understood"),
        ("#" * 1_000_001, "unknown", "not understood"),
    ],
)
def test_the_training_configuration(tmp_path: Path, text: str, language: str, said: str) -> None:
    config = about(tmp_path, state_dict={"x": torch.ones(1)}, meta={"config": text}).training_config
    assert config is not None
    assert config.language == language
    assert config.summary.startswith(said) or (said == "not understood" and config.fault)


def test_the_digest_of_our_own_trainings(tmp_path: Path) -> None:
    weights = Backbone("tiny").state_dict()
    state = TrainState(7, weights, {"state": {}, "param_groups": []}, seed=3)
    path = save_state(tmp_path / "last.pth", state, {"epoch": 1})
    found = describe(path, ())
    assert (found.digest, found.iteration) == ("holds", 7)
    read = read_checkpoint(path)
    write_checkpoint(
        path, {**read.state, "block1.0.norm1.bias": read.state["block1.0.norm1.bias"] + 1}, read.meta, read.rest
    )
    assert describe(path, ()).digest == "does not hold"


@pytest.mark.parametrize("content", [b"", b"\x89PNG....", b"<html>", b"PK\x03\x04", bytes(100)])
def test_what_is_no_model_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(Dgmn2Error) as caught:
        describe(tmp_path / "x.pth", ())
    assert caught.value.exit_code == 3
