"""Small ONNX graphs with their protocols, made in a moment: what `streets.Colours` computes, and variations of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dgmn2cli.data.cityscapes import CLASSES

Axis = int | str | None
WEIGHT = np.random.default_rng(7).normal(size=(19, 3, 1, 1)).astype(np.float32)  # as `streets.Colours` has it


def colours(
    *,
    weight: np.ndarray = WEIGHT,
    axes: Sequence[Axis] = ("batch", 3, "height", "width"),
    then: Sequence[onnx.NodeProto] = (),
    last: str = "logits",
    given: int = onnx.TensorProto.FLOAT,
    out: Sequence[Axis] | None = ("batch", 19, "height", "width"),
    tensors: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """Logits of each pixel from its colour alone; `then` may go on from `scores`, with `last` as the output's name."""
    nodes = [helper.make_node("Conv", ["images", "weight"], ["scores" if then else last]), *then]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info(last, given, out)],
        [numpy_helper.from_array(weight, "weight"), *tensors],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def protocol(data: bytes, **values: Any) -> dict[str, Any]:
    """A protocol of small windows for the graph of these bytes; `values` replace its own."""
    return {
        "format_version": 1,
        "graph": "window.onnx",
        "graph_sha256": hashlib.sha256(data).hexdigest(),
        "classes": list(CLASSES),
        "inference": {
            "protocol": "paper", "scale": [48, 24], "window": 24, "stride": 16, "ratios": [0.5, 1.0], "flip": True,
            "align_corners": True,
        },
    } | values  # fmt: skip


def write_graph(folder: Path, graph: onnx.ModelProto | bytes | None = None, **values: Any) -> Path:
    """The folder with `window.onnx` and its protocol."""
    graph = colours() if graph is None else graph
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "window.onnx").write_bytes(data)
    (folder / "protocol.json").write_text(json.dumps(protocol(data, **values)))
    return folder
