"""A graph of ONNX operators, written node by node; equal nodes and equal constants are kept once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 10  # the newest that runtimes of 2024 read
Value = str | np.ndarray | np.generic | Sequence[int]


class GraphBuilder:
    """Collects nodes and weights; `dtype`: of weights and activations, float32 or float16."""

    def __init__(self, dtype: type[np.floating]) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._known: dict[object, str] = {}

    def op(self, kind: str, *inputs: Value | None, **attributes: Any) -> str:
        """Adds a node of one output and gives the output's name; arrays and lists of integers become constants."""
        names = [self._name(value) for value in inputs]
        key = (kind, *names, *((name, str(value)) for name, value in sorted(attributes.items())))
        if key not in self._known:
            self._known[key] = f"{kind}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(kind, names, [self._known[key]], name=self._known[key], **attributes))
        return self._known[key]

    def _name(self, value: Value | None) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        array = np.asarray(value, np.int64) if isinstance(value, (list, tuple)) else np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.weights)}"
            self.weights.append(numpy_helper.from_array(np.asarray(array, order="C"), self._known[key]))
        return self._known[key]

    def cast(self, x: Value, dtype: type[np.generic]) -> str:
        """`x` in another dtype."""
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def exact(self, x: str) -> str:
        """An activation in float32."""
        return x if self.dtype is np.float32 else self.cast(x, np.float32)

    def rounded(self, x: str) -> str:
        """A float32 value in the activations' dtype."""
        return x if self.dtype is np.float32 else self.cast(x, self.dtype)

    def shape(self, *parts: str | int) -> Value:
        """A shape of constants and of one-element int64 values."""
        if all(isinstance(part, int) for part in parts):
            return [int(part) for part in parts]
        return self.op("Concat", *([part] if isinstance(part, int) else part for part in parts), axis=0)

    def reshape(self, x: str, *parts: str | int) -> str:
        """`x` in a shape of constants and one-element int64 values."""
        return self.op("Reshape", x, self.shape(*parts))

    def sizes(self, x: str, *axes: int) -> list[str]:
        """Lengths of some axes of `x`, one-element int64 values."""
        shape = self.op("Shape", x)
        return [self.op("Slice", shape, [axis], [axis + 1], [0]) for axis in axes]

    def number(self, length: str | int) -> Value:
        """A length as a float32 scalar."""
        return np.float32(length) if isinstance(length, int) else self.op("Squeeze", self.cast(length, np.float32), [0])

    def count(self, length: str | int) -> str:
        """0, 1, ... up to a length, `(L,)` float32."""
        return self.op("Range", np.float32(0), self.number(length), np.float32(1))

    def model(
        self, inputs: tuple[str, Sequence[str | int]], outputs: tuple[str, str, Sequence[str | int]]
    ) -> onnx.ModelProto:
        """The graph as a checked model.

        Args:
            inputs: name and shape of the float32 input.
            outputs: value, name and shape of the float32 output.
        """
        value, name, shape = outputs
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        graph = helper.make_graph(
            self.nodes,
            "dgmn2",
            [helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, inputs[1])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="dgmn2cli"
        )
        onnx.checker.check_model(model)
        return model
