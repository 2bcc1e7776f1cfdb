"""Protocols drafted from graphs: they are whole, they load, and they say what was guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
from graphs import WEIGHT, colours
from onnx import ModelProto, TensorProto, helper
from streets import scene
from test_runtimes import outside

from dgmn2cli.data.cityscapes import CLASSES
from dgmn2cli.errors import Dgmn2Error, IntegrityError
from dgmn2cli.inference.describe_graph import describe
from dgmn2cli.inference.graph import load_graph
from dgmn2cli.inference.runtimes import open_graph

ARGMAX = helper.make_node("ArgMax", ["scores"], ["logits"], axis=1, keepdims=0)
POOL = helper.make_node("AveragePool", ["scores"], ["logits"], kernel_shape=[4, 4], strides=[4, 4])
GRAPHS: dict[str, tuple[ModelProto, dict[str, Any]]] = {
    "any size": (colours(), {"input.height": None, "inference.scale": None, "output.kind": "logits"}),
    "one size": (
        colours(axes=(2, 3, 24, 32), out=(2, 19, 24, 32)),
        {"input.height": 24, "input.width": 32, "input.batch": 2, "inference.scale": [32, 24], "output.height": 24},
    ),
    "one height": (colours(axes=("b", 3, 24, "w"), out=None), {"input.width": None, "inference.scale": [24, 24]}),
    "smaller": (
        colours(axes=("b", 3, 24, 32), then=[POOL], out=("b", 19, 6, 8)),
        {"output.height": 6, "output.width": 8, "output.align_corners": False},
    ),
    "labels": (
        colours(then=[ARGMAX], given=TensorProto.INT64, out=("b", "h", "w")),
        {"output.kind": "labels", "output.height": None},
    ),
    "few classes": (colours(weight=WEIGHT[:3], out=("b", 3, "h", "w")), {"classes": ["class 0", "class 1", "class 2"]}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_draft_loads_as_it_is(name: str, tmp_path: Path) -> None:
    model, facts = GRAPHS[name]
    (tmp_path / "some model.onnx").write_bytes(model.SerializeToString())
    draft = describe(tmp_path / "some model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["some model.onnx"]  # nothing is written
    for key, value in facts.items():
        table = draft.document
        for part in key.split("."):
            table = table[part]
        assert table == value
    draft.path.write_text(json.dumps(draft.document))
    found = open_graph(load_graph(tmp_path / "some model.onnx"))
    assert found.classes.names == tuple(draft.document["classes"])
    image = scene(3, (30, 40))[0]
    assert found.predict(image).ids.shape == (30, 40)


def test_guesses_are_marked(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(colours().SerializeToString())
    draft = describe(tmp_path / "a.onnx")
    assert draft.document["exporter"]["guessed"] == [
        "input.mean", "input.std", "input.channels", "output.align_corners", "classes", "inference.protocol",
        "inference.align_corners",
    ]  # fmt: skip
    assert len(draft.guesses) == 7
    assert draft.document["classes"] == list(CLASSES)


def test_channels_last_are_seen(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ("b", 20, 30, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("b", 20, 30, 3))],
    )
    (tmp_path / "a.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    document = describe(tmp_path / "a.onnx").document
    assert document["input"] | {"name": "x"} == {
        "name": "x", "dtype": "uint8", "layout": "NHWC", "channels": "RGB", "mean": [0.0] * 3, "std": [1.0] * 3,
        "height": 20, "width": 30, "batch": None,
    }  # fmt: skip
    assert (document["output"]["height"], len(document["classes"])) == (20, 3)


def test_files_of_tensors_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(outside(colours(), tmp_path))
    draft = describe(tmp_path / "a.onnx")
    draft.path.write_text(json.dumps(draft.document))
    assert open_graph(load_graph(tmp_path)).predict(scene(1)[0]).windows == 1
    (tmp_path / "a.onnx").write_bytes(outside(colours(), tmp_path, location="../weights.bin"))
    with pytest.raises(Dgmn2Error):
        describe(tmp_path / "a.onnx")


def test_what_is_no_graph_of_images_is_refused(tmp_path: Path) -> None:
    flat = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("b", 10))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("b", 10))],
    )
    for data in (helper.make_model(flat).SerializeToString(), b"<html>" * 20, b"", np.float32(1).tobytes()):
        (tmp_path / "a.onnx").write_bytes(data)
        with pytest.raises(IntegrityError):
            describe(tmp_path / "a.onnx")
    with pytest.raises(IntegrityError):
        describe(tmp_path)


def typed(given: int, taken: int = TensorProto.FLOAT, **values: Any) -> ModelProto:
    """`colours` with other dtypes; none of these is run."""
    model = colours(given=given, **values)
    model.graph.input[0].type.tensor_type.elem_type = taken
    return model


def named(name: str) -> ModelProto:
    model = colours()
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    return model


USELESS = {
    "one class": colours(out=("b", 1, "h", "w")),
    "300 classes": colours(out=("b", 300, "h", "w")),
    "grey": colours(axes=("b", 1, "h", "w")),
    "float64 in": typed(TensorProto.DOUBLE, TensorProto.DOUBLE),
    "int8 in": typed(TensorProto.FLOAT, TensorProto.INT8),
    "bfloat16 out": typed(TensorProto.BFLOAT16),
    "truth values out": typed(TensorProto.BOOL),
    "a large batch": colours(axes=(5000, 3, "h", "w")),
    "large sides": colours(axes=("b", 3, 200_000, 200_000)),
    "a long name": named("x" * 300),
    "a name that moves the cursor": named("a\x1b[2Jb"),
}


@pytest.mark.parametrize("kind", USELESS)
def test_no_protocol_is_drafted_that_would_be_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(USELESS[kind].SerializeToString())
    with pytest.raises(IntegrityError) as caught:
        describe(tmp_path / "a.onnx")
    assert "\x1b" not in str(caught.value)
