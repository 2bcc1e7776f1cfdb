"""Conversion: the same bits, everything accounted for, nothing overwritten that should stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dgmn2cli.checkpoint import convert as converting
from dgmn2cli.checkpoint.convert import convert
from dgmn2cli.checkpoint.weights import load_backbone_weights, read_checkpoint, write_checkpoint
from dgmn2cli.errors import ConfigError, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.model.backbone import Backbone, Classifier

META = {"CLASSES": ("road", "sky"), "PALETTE": [[1, 2, 3], [4, 5, 6]], "iter": 5, "lr": 0.1, "text": "ä\u202e"}


def weights() -> dict[str, Tensor]:
    shared = torch.arange(6.0)
    return {
        "a": torch.tensor([-0.0, 1e-42, 3.0]), "b": shared, "c": shared, "view": shared.view(2, 3).t(),
        "half": torch.ones(2).half(), "bf": torch.ones(3, 1).bfloat16(), "n": torch.tensor(7),
        "none": torch.empty(0, 4),
    }  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rest = {"optimizer": {"state": {}}, "training": {"world": 1}, "note": "x"}
    return write_checkpoint(tmp_path / "in.pth", weights(), {**META, "odd": float("nan"), "raw": b"1"}, rest)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    kinds = [(k, v.dtype, v.shape) for k, v in one.items()] == [(k, other[k].dtype, other[k].shape) for k in one]
    return kinds and all(v.contiguous().numpy(force=True).tobytes() == other[k].contiguous().numpy(force=True).tobytes()
                         for k, v in one.items() if v.dtype != torch.bfloat16)  # fmt: skip


def test_there_and_back(tmp_path: Path, source: Path) -> None:
    there = convert(source, tmp_path / "out.safetensors")
    assert same_bits(weights(), load_file(tmp_path / "out.safetensors"))
    outcomes = {line.key: line.outcome for line in there.lines}
    assert {key for key, outcome in outcomes.items() if outcome == "dropped"} == {
        "optimizer", "training", "note", "meta.odd", "meta.raw"
    }  # fmt: skip
    assert (there.kept, there.dropped) == (13, 5)
    back = convert(tmp_path / "out.safetensors", tmp_path / "back.pth")
    read = read_checkpoint(tmp_path / "back.pth")
    assert read.meta == {**META, "CLASSES": ["road", "sky"]}
    assert (read.rest, back.dropped, back.source_sha256) == ({}, 0, there.target_sha256)
    assert same_bits(weights(), read.state)
    assert read.sha256 == back.target_sha256


def test_the_optimiser_is_stripped_from_pth_to_pth(tmp_path: Path, source: Path) -> None:
    report = convert(source, tmp_path / "slim.pth")
    read = read_checkpoint(report.target)
    assert (set(read.rest), read.meta["raw"]) == (set(), b"1")
    assert report.dropped == 3


def test_a_converted_file_loads_as_strictly(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in Classifier("tiny").state_dict().items()}
    torch.save({"model": state}, tmp_path / "in.pth")
    report = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert {line.outcome for line in report.lines} == {"renamed"}
    backbone = Backbone("tiny")
    load_backbone_weights(backbone, read_checkpoint(report.target, sha256=report.target_sha256))
    assert all(torch.equal(value, state[f"module.{key}"]) for key, value in backbone.state_dict().items())
    with pytest.raises(IntegrityError, match=f"wanted {'0' * 64}"):
        read_checkpoint(report.target, sha256="0" * 64)
    with pytest.raises(IntegrityError, match="missing"):
        load_backbone_weights(Backbone("small"), read_checkpoint(report.target))


def test_targets_that_are_refused(tmp_path: Path, source: Path) -> None:
    before = source.read_bytes()
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    os.link(source, tmp_path / "hard.pth")
    (tmp_path / "soft.pth").symlink_to(source)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ConfigError, match="it exists"):
        convert(source, tmp_path / "there.safetensors")
    impossible = "not a possible file name"
    for name, words in (
        ("in.pth", "own source"), ("hard.pth", "own source"), ("soft.pth", "own source"), ("folder.pth", "a folder"),
        ("x.onnx", "unknown format"), ("x", "unknown format"),
        ("a" * 300 + ".pth", impossible), ("a\0.pth", impossible),
    ):  # fmt: skip
        with pytest.raises((ConfigError, ResourceError), match=words):
            convert(source, tmp_path / name, overwrite=True)
    assert source.read_bytes() == before
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"
    assert convert(source, tmp_path / "there.safetensors", overwrite=True).kept == 13


def test_a_refused_source_writes_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "nan.pth", {"a": torch.tensor(float("nan"))}, {})
    (tmp_path / "page.pth").write_bytes(b"<html>")
    with pytest.raises(NonFiniteError):
        convert(tmp_path / "nan.pth", tmp_path / "out.safetensors")
    with pytest.raises(IntegrityError):
        convert(tmp_path / "page.pth", tmp_path / "out.safetensors")
    with pytest.raises(ResourceError):
        convert(tmp_path / "none.pth", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan.pth", "page.pth"]


def test_a_result_that_differs_is_noticed(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = converting.safetensors_bytes

    def wrong(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
        return real({**tensors, "a": tensors["a"] + 1}, metadata=metadata)

    monkeypatch.setattr(converting, "safetensors_bytes", wrong)
    with pytest.raises(IntegrityError, match="not what was read"):
        convert(source, tmp_path / "out.safetensors")
