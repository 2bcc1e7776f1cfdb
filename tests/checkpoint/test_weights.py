"""Model files: what is read, what is refused and why; nothing executed, nothing loaded in part."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import stand_ins
from safetensors.torch import save_file
from torch import Tensor, nn

from dgmn2cli.checkpoint.weights import (
    load_backbone_weights,
    load_weights,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from dgmn2cli.errors import Dgmn2Error, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.model.backbone import Backbone, Classifier


class Small(nn.Module):
    """A network with every kind of entry a checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)


def state() -> dict[str, Tensor]:
    return {key: value.clone() for key, value in Small().state_dict().items()}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "good.pth", state(), {"CLASSES": ["a"], "iter": 3}, {"optimizer": {"lr": 0.1}})


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "module", "safetensors", "legacy"])
def test_every_published_layout_is_read(tmp_path: Path, wrap: str) -> None:
    weights, path = state(), tmp_path / "file.pth"
    if wrap == "safetensors":
        save_file(weights, path)
    elif wrap == "legacy":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    elif wrap == "module":
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    else:
        torch.save(weights if wrap == "bare" else {wrap: weights, "epoch": 1}, path)
    model = Small()
    load_weights(model, read_checkpoint(path))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_meta_and_the_rest_are_kept(good: Path) -> None:
    checkpoint = read_checkpoint(good)
    assert checkpoint.meta == {"CLASSES": ["a"], "iter": 3}
    assert checkpoint.rest == {"optimizer": {"lr": 0.1}}
    assert checkpoint.size == good.stat().st_size
    assert verify_checkpoint(good, Small()).sha256 == checkpoint.sha256


def test_the_hash_is_checked_before_anything_is_unpickled(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = read_checkpoint(good).sha256
    assert read_checkpoint(good, sha256=sha256.upper()).sha256 == sha256
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("unpickled"))
    with pytest.raises(IntegrityError, match=f"wanted {'0' * 64}"):
        read_checkpoint(good, sha256="0" * 64)


@pytest.mark.parametrize("count", [300])
def test_single_bit_flips_never_pass_unnoticed(good: Path, tmp_path: Path, count: int) -> None:
    """Without a known hash the archive's own checksums catch what matters: the tensors that load are the right ones."""
    data, random = good.read_bytes(), np.random.default_rng(5)
    reference = read_checkpoint(good).state
    refused = 0
    for position in random.integers(0, 8 * len(data), count):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << (position % 8)
        path = tmp_path / "damaged.pth"
        path.write_bytes(damaged)
        try:
            checkpoint = read_checkpoint(path)
        except Dgmn2Error:
            refused += 1
            continue
        assert all(torch.equal(value, reference[key]) for key, value in checkpoint.state.items())
        assert checkpoint.state.keys() == reference.keys()
    assert refused > count // 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_cut_files_are_refused(good: Path, tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[: int(good.stat().st_size * share)])
    with pytest.raises(IntegrityError):
        read_checkpoint(cut)


FOREIGN = {
    "page.pth": (b"<!DOCTYPE html><html><title>Quota exceeded</title>", "web page"),
    "space.pth": (b"\n\n  <HTML>", "web page"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS pointer"),
    "image.pth": (b"\x89PNG\r\n\x1a\n0000", "PNG"),
    "photo.pth": (b"\xff\xd8\xff\xe0" + bytes(30), "JPEG"),
    "empty.pth": (b"", "empty"),
    "packed.pth": (b"\x1f\x8b\x08" + bytes(30), "gzip"),
    "noise.pth": (bytes(range(256)) * 9, "damaged or of another kind"),
    "text.pth": (b"hello", "damaged or of another kind"),
    "call.toml": (b'classes = ["a"]\nimages = "b"\n', "damaged or of another kind"),  # `c` is a pickle's call
    "zip.pth": (b"PK\x03\x04" + bytes(40), "damaged or of another kind"),
    "number.pth": (pickle.dumps(3), "damaged or of another kind"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    content, words = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        read_checkpoint(path)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_folders_pipes_and_missing_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match="pipe"):
        read_checkpoint(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match="folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(ResourceError, match="no such file"):
        read_checkpoint(tmp_path / "absent.pth")


class Call:
    """Pickles into a call of any function: what a hostile file would hold."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("function", [os.system, eval, exec, open, __import__, io.FileIO, getattr])
@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickles_execute_nothing(tmp_path: Path, function: Any, legacy: bool) -> None:
    path, trace = tmp_path / "hostile.pth", tmp_path / "trace"
    argument = f"touch {trace}" if function is os.system else str(trace)
    content = {"state_dict": state(), "meta": Call(function, argument)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(IntegrityError) as caught:
        read_checkpoint(path)
    assert "unsafe" in str(caught.value)
    assert getattr(function, "__name__", "") in str(caught.value)
    assert not trace.exists()


def test_numpy_scalars_in_meta_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    meta = {"lr": np.float64(0.25), "iter": np.int64(40000), "half": np.float32(0.5), "on": np.bool_(True)}
    torch.save({"meta": meta, "state_dict": state()}, path)
    read = read_checkpoint(path).meta
    assert read == {"lr": 0.25, "iter": 40000, "half": 0.5, "on": True}
    assert all(type(value) in (float, int, bool) for value in read.values())


def test_numpy_arrays_in_meta_are_lists(tmp_path: Path) -> None:
    path = tmp_path / "array.pth"
    arrays = {
        "table": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "big end": np.array([1.5, -2.0], ">f4"),
        "one": np.array(7),
        "none": np.zeros((2, 0)),
    }
    torch.save({"meta": arrays, "state_dict": state()}, path)
    read = read_checkpoint(path).meta
    assert read == {"table": [[0, 1, 2], [3, 4, 5]], "big end": [1.5, -2.0], "one": 7, "none": []}


def test_odd_numpy_arrays_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "array.pth"
    odd = {"columns": np.asfortranarray(np.eye(2)), "texts": np.array(["a"]), "objects": np.array([{}, None])}
    torch.save({"meta": {**odd, "iter": 3}, "state_dict": state()}, path)
    read = read_checkpoint(path)
    assert read.meta == {"iter": 3}
    assert any("numpy.ndarray" in note for note in read.notes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_named(tmp_path: Path, value: float) -> None:
    weights = state()
    weights["norm.running_var"][2] = value
    path = write_checkpoint(tmp_path / "nan.pth", weights, {})
    with pytest.raises(NonFiniteError, match=r"norm\.running_var"):
        read_checkpoint(path)


def test_no_layer_is_ever_left_random(tmp_path: Path) -> None:
    weights = state()
    del weights["conv.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["conv.weight"] = torch.zeros(4, 3, 2, 2)
    weights["norm.num_batches_tracked"] = torch.tensor(1.0)
    model = Small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(IntegrityError) as caught:
        load_weights(model, read_checkpoint(write_checkpoint(tmp_path / "odd.pth", weights, {})))
    assert "1 missing, 1 unexpected, 1 of another shape, 1 of another type" in str(caught.value)
    assert caught.value.fault_lines() == [
        "missing: conv.bias",
        "unexpected: extra.weight",
        "of another shape: conv.weight (4, 3, 2, 2), wanted (4, 3, 1, 1)",
        "of another type: norm.num_batches_tracked torch.float32, wanted torch.int64",
    ]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_not_tensors_is_refused(tmp_path: Path) -> None:
    for content in ([1, 2], {"state_dict": {"a": 3}}, {"state_dict": {}}, {"x": torch.zeros(2).to_sparse()}):
        path = tmp_path / "content.pth"
        torch.save(content, path)
        with pytest.raises(IntegrityError):
            read_checkpoint(path)


def test_a_refused_sparse_tensor_does_not_spoil_the_next_file(tmp_path: Path, good: Path) -> None:
    invalid = torch.sparse_coo_tensor(torch.tensor([[7]]), torch.ones(1), (2,), check_invariants=False)
    torch.save({"sparse": invalid, "later": torch.ones(3)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "cut.pth", "w") as cut:
        for name in whole.namelist():
            if not name.endswith("/data/2"):  # the numbers of the last tensor
                cut.writestr(name, whole.read(name))
    with pytest.raises(IntegrityError):
        read_checkpoint(tmp_path / "cut.pth")
    assert read_checkpoint(good).meta["iter"] == 3


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(IntegrityError, match="claim to unpack"):
        read_checkpoint(path)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_imagenet_checkpoints_fill_the_whole_backbone(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    weights = {prefix + key: value for key, value in stand_ins(lambda: Classifier("tiny")).items()}
    path = tmp_path / "imagenet.pth"
    torch.save({wrapper: weights} if wrapper else weights, path)
    backbone = Backbone("tiny", (4, 2, 1, 1))
    load_backbone_weights(backbone, read_checkpoint(path))
    assert all(torch.equal(value, weights[prefix + key]) for key, value in backbone.state_dict().items())


def test_a_partial_imagenet_checkpoint_fails_loudly(tmp_path: Path) -> None:
    weights = stand_ins(lambda: Classifier("tiny"))
    del weights["block3.1.mlp.fc1.weight"]
    path = write_checkpoint(tmp_path / "partial.pth", weights, {})
    with pytest.raises(IntegrityError, match="1 missing"):
        load_backbone_weights(Backbone("tiny"), read_checkpoint(path))
    with pytest.raises(IntegrityError, match="unexpected"):
        load_backbone_weights(
            Backbone("tiny"), read_checkpoint(write_checkpoint(path, stand_ins(lambda: Classifier("small")), {}))
        )


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model.pth"
    write_checkpoint(target, state(), {})
    before = target.read_bytes()

    class Unwritable:
        def __reduce__(self) -> tuple[Any, ...]:
            raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left"):
        write_checkpoint(target, state(), {"x": Unwritable()})
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
