"""What an ONNX file says of its tensors, inputs and outputs, compared with its protocol. Needs the onnx package."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmn2cli.errors import IntegrityError, ResourceError, first_line, require_installed
from dgmn2cli.inference.graph import PROTOCOL_FILE, Graph, GraphProtocol
from dgmn2cli.validation import raise_faults, show

if TYPE_CHECKING:
    import onnx

DTYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
FLOATS = ("float16", "float32", "float64")
_HINT = "Name an .onnx file."
LABELS = ("uint8", "int8", "int16", "int32", "int64")
Axes = tuple[int | None, ...]


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its name, dtype and axes, None where any length fits; no axes: not known."""

    name: str
    dtype: str
    axes: Axes | None

    def sides(self, layout: str) -> dict[str, int | None]:
        """The lengths of its axes by name, as far as they are known; labels may have no `channels`."""
        names = ["batch", "height", "width"]
        if self.axes is not None and len(self.axes) == 4:
            names.insert(3 if layout == "NHWC" else 1, "channels")
        return dict(zip(names, self.axes or (), strict=False))


def parse(data: bytes, path: Path) -> onnx.ModelProto:
    """The ONNX file of these bytes; tensors that lie in other files are not read.

    Raises:
        IntegrityError: it is none.
    """
    require_installed("onnx", "onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise IntegrityError("this is no ONNX file", where=path, why=first_line(error), hint=_HINT) from error
    if not model.graph.node:
        raise IntegrityError("this is no ONNX file", where=path, why="it has no graph", hint=_HINT)
    return model


def external_names(model: onnx.ModelProto) -> list[str]:
    """The files that hold tensors of `model`, as it names them, sorted."""
    return sorted({_entries(tensor).get("location", "") for tensor in _tensors(model) if _is_external(tensor)})


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL or tensor.external_data)


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor, however deep: of graphs within nodes and of functions, too."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if isinstance(value, Sequence) or hasattr(value, "add") else [value]:
            if field.message_type.name == "TensorProto":
                yield part
            yield from _tensors(part)


def complete(graph: Graph) -> tuple[bytes, str]:
    """The graph with all its tensors as one ONNX file, checked against its protocol; and the dtype of most of them.

    Raises:
        ConfigError: the protocol says something else than the graph; all at once.
        IntegrityError: a file is not the one that was hashed, or no ONNX; or tensors lie in files without a hash.
        ResourceError: a file cannot be read, the onnx package is missing, or the graph is too large.
    """
    data, external = graph.read()
    model = parse(data, graph.path)
    unhashed = [name for name in external_names(model) if name not in external]
    if unhashed:
        raise IntegrityError(
            "tensors of the graph lie in files without a hash",
            where=graph.path,
            why=f"it names {', '.join(map(show, unhashed[:3]))}",
            hint=f"Add them to `external` of {PROTOCOL_FILE}; `dgmn2 export --describe` drafts it.",
        )
    if faults := disagreements(model, graph.protocol):
        raise_faults("the graph's protocol says something else than the graph", faults, graph.path)
    precision = precision_of(model)
    if not external:
        return data, precision
    for tensor in _tensors(model):
        if _is_external(tensor):
            _take_in(tensor, external, graph.path)
    try:
        return model.SerializeToString(), precision
    except ValueError as error:
        why = "with its external tensors it has more than 2 GB"
        raise ResourceError("the graph is too large", where=graph.path, why=why) from error


def _take_in(tensor: Any, files: Any, path: Path) -> None:
    """Puts the bytes that a tensor has in another file into the tensor."""
    entries = _entries(tensor)
    data = files[entries["location"]]
    try:
        first = int(entries.get("offset", 0))
        length = int(entries.get("length", len(data) - first))
    except ValueError:
        first = length = -1
    if not 0 <= first <= first + length <= len(data):
        why = f"tensor {show(tensor.name)} lies beyond the end of {entries['location']}"
        raise IntegrityError("the graph is damaged", where=path, why=why)
    tensor.ClearField("external_data")
    tensor.data_location = tensor.DEFAULT
    tensor.raw_data = data[first : first + length]


def precision_of(model: onnx.ModelProto) -> str:
    """The floating-point dtype of most of the graph's weights."""
    counts = {"float32": 0, "float16": 0, "bfloat16": 0, "float64": 0}
    for tensor in model.graph.initializer:
        name = {16: "bfloat16"}.get(tensor.data_type) or DTYPES.get(tensor.data_type, "")
        if name in counts:
            counts[name] += math.prod(tensor.dims)
    return max(counts, key=lambda name: counts[name])


def inputs_of(model: onnx.ModelProto) -> list[Port]:
    """What must be given to run the graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [_port(value) for value in model.graph.input if value.name not in weights]


def outputs_of(model: onnx.ModelProto) -> list[Port]:
    """What the graph gives."""
    return [_port(value) for value in model.graph.output]


def _port(value: Any) -> Port:
    kind = value.type.tensor_type
    axes = tuple(side.dim_value if side.dim_value > 0 else None for side in kind.shape.dim)
    return Port(value.name, DTYPES.get(kind.elem_type, f"ONNX type {kind.elem_type}"), axes or None)


def disagreements(model: onnx.ModelProto, protocol: GraphProtocol) -> list[str]:
    """What a protocol says about inputs and outputs and the graph does not."""
    taken, given = protocol.input, protocol.output
    inputs = {port.name: port for port in inputs_of(model)}
    outputs = {port.name: port for port in outputs_of(model)}
    rows: list[tuple[str, Any, Any]] = []  # a key, what the protocol says, what the graph has; None: whatever is said
    for key, name, ports in (("input.name", taken.name, inputs), ("output.name", given.name, outputs)):
        rows.append((key, name, None if name in ports else ", ".join(ports) or "nothing"))
    if port := inputs.get(taken.name):
        rows.append(("input", taken.name, None if len(inputs) == 1 else ", ".join(inputs)))
        rows += [("input.dtype", taken.dtype, port.dtype), ("input", "4 axes", _odd_axes(port))]
        sides = port.sides(taken.layout) if _odd_axes(port) is None else {}
        rows += [(f"input.{side}", getattr(taken, side), sides.get(side)) for side in ("batch", "height", "width")]
        channels = sides.get("channels")
        rows.append(("input.layout", taken.layout, None if channels in (None, 3) else f"{channels} channels that way"))
    if port := outputs.get(given.name):
        kind = "labels" if port.dtype in LABELS else "logits"
        rows.append(("output.kind", given.kind, kind))
        if given.kind == kind == "logits":
            rows.append(("output", "4 axes", _odd_axes(port)))
            rows.append(("classes", len(protocol.classes), port.sides(taken.layout).get("channels")))
    return [f"{key}: {show(said)}, the graph has {found}" for key, said, found in rows if found not in (None, said)]


def _odd_axes(port: Port) -> str | None:
    """How many axes a port has, where they are known and not those of images."""
    return None if port.axes is None or len(port.axes) == 4 else f"{len(port.axes)} axes"
