"""The forms in which people keep the same weights: each is read, and what was taken or left out is said."""

from __future__ import annotations

import argparse
import array
import collections
import datetime
import ipaddress
import json
import os
import pathlib
import random
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dgmn2cli.checkpoint.unwrap import class_names
from dgmn2cli.checkpoint.weights import load_weights, read_checkpoint, write_checkpoint
from dgmn2cli.errors import ConfigError, IntegrityError
from dgmn2cli.inference.load import class_list
from dgmn2cli.inference.prediction import check_outputs


class Small(nn.Module):
    """A network with names such as DGMN2's."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.decode_head = nn.Conv2d(4, 2, 1)


STATE = {key: value.clone() for key, value in Small().state_dict().items()}
ZEROS = {key: torch.zeros_like(value) for key, value in STATE.items()}
META = {"CLASSES": ["a", "b"], "iter": 3}


def prefixed(prefix: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in (STATE if state is None else state).items()}


@pytest.fixture
def foreign() -> Iterator[types.ModuleType]:
    """A module of another program, there while a file is written and gone when it is read."""
    module = types.ModuleType("otherlib.history")
    package = types.ModuleType("otherlib")
    sys.modules.update({"otherlib": package, "otherlib.history": module})

    class HistoryBuffer:
        def __init__(self) -> None:
            self.values, self.length = np.array([1.0, 2.0]), 10

    class AttributeDict(dict):  # type: ignore[type-arg]
        pass

    class Records(list):  # type: ignore[type-arg]
        pass

    class Slotted:
        __slots__ = ("x",)

        def __init__(self) -> None:
            self.x = 1

    for kind in (HistoryBuffer, AttributeDict, Records, Slotted):
        kind.__module__, kind.__qualname__ = "otherlib.history", kind.__name__
        setattr(module, kind.__name__, kind)
    yield module
    for name in ("otherlib", "otherlib.history"):
        sys.modules.pop(name, None)


def saved(path: Path, content: Any, **settings: Any) -> Path:
    torch.save(content, path, **settings)
    return path


def assert_loads(path: Path, wanted: dict[str, Tensor] | None = None, **settings: Any) -> tuple[str, ...]:
    """Loads the file into a fresh network; every tensor is the right one. Returns the notes."""
    read, model = read_checkpoint(path, **settings), Small()
    load_weights(model, read)
    expected = STATE if wanted is None else wanted
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    return read.notes


PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.module.",
    "segmentor.net.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("bare", [False, True])
def test_prefixes_are_taken_off_and_said(tmp_path: Path, prefix: str, bare: bool) -> None:
    state = prefixed(prefix)
    notes = assert_loads(saved(tmp_path / "x.pth", state if bare else {"state_dict": state, "meta": META}))
    assert any(prefix in note for note in notes)


def test_a_part_compiled_by_itself(tmp_path: Path) -> None:
    state = {key.replace("backbone.", "backbone._orig_mod."): value for key, value in STATE.items()}
    assert_loads(saved(tmp_path / "x.pth", {"state_dict": state}))


def test_names_that_collide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="twice"):
        read_checkpoint(saved(tmp_path / "x.pth", {**STATE, **prefixed("module.")}))


@pytest.mark.parametrize("wrapper", ["net", "model", "model_state_dict", "network", "params", "weights", "anything"])
def test_wrappers_are_found_and_said(tmp_path: Path, wrapper: str) -> None:
    path = saved(tmp_path / "x.pth", {wrapper: STATE, "epoch": 3, "optimizer_state_dict": {}})
    notes = assert_loads(path)
    assert read_checkpoint(path).wrapper == wrapper
    assert wrapper == "model" or any(f"'{wrapper}'" in note for note in notes)


def test_weights_two_levels_deep(tmp_path: Path) -> None:
    nested = {"checkpoint": {"state_dict": STATE, "meta": META}, "ema": ZEROS, "rng": torch.zeros(3, dtype=torch.uint8)}
    path = saved(tmp_path / "x.pth", {**nested, "dtype": torch.float16})
    assert_loads(path)
    assert_loads(path, ZEROS, ema=True)
    assert read_checkpoint(path).meta == META


def test_several_unknown_wrappers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_checkpoint(saved(tmp_path / "x.pth", {"student": STATE, "teacher": ZEROS}))
    assert "student" in caught.value.why
    assert "teacher" in caught.value.why


def test_averaged_weights_are_named_and_taken_on_request(tmp_path: Path) -> None:
    averages = {"state_dict_ema": ZEROS, "ema_state_dict": {**prefixed("module.", ZEROS), "steps": torch.tensor(5)}}
    for name, average in averages.items():
        path = saved(tmp_path / "x.pth", {"state_dict": STATE, name: average, "epoch": 1})
        assert any("--ema" in note and name in note for note in assert_loads(path))
        assert any(f"'{name}'" in note for note in assert_loads(path, ZEROS, ema=True))
    with pytest.raises(IntegrityError, match="--ema"):
        read_checkpoint(saved(tmp_path / "x.pth", {"state_dict": STATE}), ema=True)


def test_objects_beside_the_weights_are_left_out_and_named(tmp_path: Path, foreign: types.ModuleType) -> None:
    settings = foreign.AttributeDict(lr=0.1, sizes=[1, 2])
    beside = {
        "args": argparse.Namespace(lr=1e-4),
        "hyper_parameters": settings,
        "message_hub": {"log_scalars": {"train/loss": foreign.HistoryBuffer()}, "kept": 4},
        "records": foreign.Records([1, 2]),
        "slots": foreign.Slotted(),
        "queue": collections.deque([1, 2]),
        "counts": collections.defaultdict(int, a=1),
        "date": datetime.datetime(2022, 9, 20, tzinfo=datetime.UTC),
        "best": np.float64(77.2),
        "random": np.random.RandomState(0),
    }
    path = saved(
        tmp_path / "x.pth", {"state_dict": STATE, "meta": {**META, "work": pathlib.PurePosixPath("/x")}, **beside}
    )
    sys.modules.pop("otherlib.history")
    notes = assert_loads(path)
    said = " ".join(notes)
    assert "argparse.Namespace" in said
    read = read_checkpoint(path)
    assert read.meta == META
    assert read.rest["message_hub"] == {"log_scalars": {}, "kept": 4}
    assert read.rest["hyper_parameters"] == {"lr": 0.1, "sizes": [1, 2]}
    assert read.rest["counts"] == {"a": 1}
    assert read.rest["best"] == 77.2
    assert not {"args", "records", "slots", "date"} & set(read.rest)


@pytest.mark.parametrize(
    "thing",
    [
        np.random.default_rng(0),
        np.datetime64("2022-09-20"),
        np.ma.array([1, 2], mask=[0, 1]),
        re.compile("a+"),
        random.Random(0),
        ipaddress.ip_address("127.0.0.1"),
        array.array("d", [1.0]),
        collections.ChainMap({1: 2}),
        ...,
        NotImplemented,
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_data_of_the_standard_library_and_of_numpy_is_left_out(tmp_path: Path, thing: object) -> None:
    path = saved(tmp_path / "x.pth", {"state_dict": STATE, "meta": META, "thing": thing})
    assert "left out" in " ".join(assert_loads(path))
    assert "thing" not in read_checkpoint(path).rest


def test_a_whole_pickled_network_is_named(tmp_path: Path) -> None:
    Small.__qualname__, Small.__module__ = "Small", "tests_network"
    module = types.ModuleType("tests_network")
    module.Small = Small  # type: ignore[attr-defined]
    sys.modules["tests_network"] = module
    try:
        for content in (Small(), {"model": Small(), "epoch": 1}):
            with pytest.raises(IntegrityError) as caught:
                read_checkpoint(saved(tmp_path / "x.pth", content))
            assert "tests_network.Small" in caught.value.why
    finally:
        del sys.modules["tests_network"]


def test_counters_of_batches_may_be_absent(tmp_path: Path) -> None:
    state = {key: value for key, value in STATE.items() if not key.endswith("num_batches_tracked")}
    assert len(state) < len(STATE)
    assert_loads(saved(tmp_path / "x.pth", {"state_dict": state}))


def test_other_layouts(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert_loads(saved(path, STATE))
    assert_loads(saved(path, {"state_dict": STATE, "meta": META}, _use_new_zipfile_serialization=False))
    parameters = collections.OrderedDict(
        (key, nn.Parameter(value) if value.is_floating_point() else value) for key, value in STATE.items()
    )
    assert_loads(saved(path, {"state_dict": parameters}))
    assert_loads(saved(path, {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.1", "epoch": 3}))


def test_for_inference_the_rest_is_not_read(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.pth", STATE, META, {"optimizer": {"state": {0: torch.zeros(9)}}})
    read = read_checkpoint(path, inference=True)
    assert read.rest == {}
    assert read.meta == META
    assert_loads(path, inference=True)


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"CLASSES": ["a", "b"]}, ("a", "b")),
        ({"CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3], [4, 5, 6]]}, ("a", "b")),
        ({"dataset_meta": {"classes": ("a", "b"), "palette": [[1, 2, 3], [4, 5, 6]]}}, ("a", "b")),
        ({"dataset_meta": {"CLASSES": ["a"]}}, ("a",)),
        (
            {"CLASSES": ["car", "car", "a\nb", "\ud800", "", "c" * 999]},
            ("car", "car (1)", "a\\nb", "\\ud800", "class 4", "c" * 180),
        ),
        ({"CLASSES": "road"}, None),
        ({"CLASSES": [1, 2]}, None),
        ({"dataset_meta": 3}, None),
        ({}, None),
    ],
)
def test_class_names_of_both_generations(meta: dict[str, Any], names: tuple[str, ...] | None) -> None:
    assert class_names(meta)[0] == names


def test_nineteen_classes_are_cityscapes_unless_something_speaks_against_it() -> None:
    crops = {"classes": tuple(f"crop{index}" for index in range(19)), "palette": [[i, i, i] for i in range(19)]}
    found = class_list(19, {"dataset_meta": crops})
    assert (found.cityscapes, found.names[3], found.palette[3].tolist()) == (False, "crop3", [3, 3, 3])
    assert class_list(19, {}).cityscapes
    assert class_list(19, {"CLASSES": list(class_list(19, {}).names)}).cityscapes
    two = class_list(19, {"dataset_meta": {"classes": ("a", "b")}})
    assert (two.cityscapes, two.names[0]) == (False, "class 0")
    with pytest.raises(ConfigError):
        check_outputs(["labelids"], found)


def test_a_wrapper_that_is_no_text_and_a_tensor_beside_it(tmp_path: Path) -> None:
    assert_loads(saved(tmp_path / "x.pth", {5: STATE, "rng": torch.get_rng_state()}))
    assert read_checkpoint(tmp_path / "x.pth").wrapper == "5"


def test_a_tensor_that_cannot_be_taken_is_named(tmp_path: Path) -> None:
    state = {**STATE, "decode_head.bias": torch.ones(2).to_sparse()}
    with pytest.raises(IntegrityError) as caught:
        read_checkpoint(saved(tmp_path / "x.pth", {"state_dict": state}))
    assert "'state_dict.decode_head.bias'" in caught.value.why


SPELLED = {"buffer": bytearray(b"\0\xff"), "empty": bytearray()}
FAILED = {"error": ValueError("x", 1), "interrupted": KeyboardInterrupt(), "line": json.JSONDecodeError("a", "b", 0)}


@pytest.mark.parametrize("zipped", [True, False])
def test_bytearrays_and_exceptions_beside_the_weights(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": STATE, "a": SPELLED, "b": FAILED, "again": [SPELLED["buffer"]] * 2}
    path = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=zipped)
    [note] = assert_loads(path)
    for name in ("builtins.ValueError", "builtins.KeyboardInterrupt", "json.decoder.JSONDecodeError"):
        assert name in note
    assert read_checkpoint(path).rest["a"] == {"buffer": b"\0\xff", "empty": b""}


class _Spelled:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return bytearray, self.arguments


@pytest.mark.parametrize("arguments", [(1 << 40,), (b"x", 1 << 40), ("x", "idna"), ([1] * 9,)])
def test_a_bytearray_is_made_of_bytes_alone(tmp_path: Path, arguments: tuple[Any, ...]) -> None:
    """A number would be its length, and some encodings take quadratic time."""
    with pytest.raises(IntegrityError, match="bytearray"):
        read_checkpoint(saved(tmp_path / "x.pth", {"state_dict": STATE, "x": _Spelled(*arguments)}))


@pytest.mark.parametrize("prefixes", [("model.", "ema_model."), ("", "teacher."), ("student.net.", "teacher.net.")])
def test_several_networks_under_one_entry_are_told_apart_by_their_prefixes(
    tmp_path: Path, prefixes: tuple[str, str]
) -> None:
    state = {**prefixed(prefixes[0]), **prefixed(prefixes[1], ZEROS)}
    for content in (state, {"state_dict": state, "meta": META}):
        with pytest.raises(IntegrityError) as caught:
            read_checkpoint(saved(tmp_path / "x.pth", content))
        for prefix in prefixes:
            assert f"'{prefix.removeprefix('model.')}' ({len(STATE)})" in str(caught.value)


@pytest.mark.parametrize("inference", [True, False])
def test_a_file_whose_name_is_no_text(tmp_path: Path, inference: bool) -> None:
    """torch maps no such file."""
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    path = write_checkpoint(folder / "x.pth", STATE, META)
    read = read_checkpoint(path, inference=inference)
    assert all(torch.equal(value, STATE[key]) for key, value in read.state.items())
    assert read.meta == META
