"""The protocol of somebody's ONNX graph, drafted from the graph. Needs the onnx package."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmn2cli.config.schema import MAX_NAME
from dgmn2cli.data.cityscapes import CLASSES
from dgmn2cli.data.transforms import MEAN_RGB, STD_RGB
from dgmn2cli.errors import IntegrityError
from dgmn2cli.files import hash_file, read_bounded
from dgmn2cli.inference.graph import FORMAT_VERSION, MAX_GRAPH, PROTOCOL_FILE, validate
from dgmn2cli.inference.onnx_model import (
    FLOATS,
    LABELS,
    Port,
    disagreements,
    external_names,
    inputs_of,
    outputs_of,
    parse,
)
from dgmn2cli.validation import show

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Draft:
    """A protocol drafted from a graph."""

    path: Path  # where it is meant to lie
    document: dict[str, Any]  # its content, as JSON types; `exporter.guessed` names what the graph does not say
    guesses: tuple[str, ...]  # the same with the value taken and the reason, a sentence each


def describe(path: str | Path) -> Draft:
    """What the graph at `path` says of itself, as a protocol; what it does not say is guessed, and marked as a guess.

    Nothing is asked, run or written.

    Raises:
        IntegrityError: it is no ONNX file, or one that no protocol makes usable: not from one image to scores or labels
            of its pixels, or with a dtype, a size, a name or a number of classes that is not taken.
        ResourceError: it cannot be read, or the onnx package is missing.
    """
    path = Path(path)
    data = read_bounded(path, MAX_GRAPH, "cannot read the graph")
    model = parse(data, path)
    files = external_names(model)
    if away := [name for name in files if os.path.basename(name) != name or not name.strip(".")]:
        why = f"it names {show(away[0])}, wanted a file beside it"
        hint = "Put them beside the graph, and save it with their names alone."
        raise IntegrityError("tensors of the graph lie elsewhere", where=path, why=why, hint=hint)
    taken, given, guesses = *_ports(model, path), list[str]()
    entry = _describe_input(taken, guesses)
    height, width, sides = entry["height"], entry["width"], given.sides(entry["layout"])
    kind = "labels" if given.dtype in LABELS else "logits"
    output: dict[str, Any] = {"name": given.name, "kind": kind}
    output |= {"height": sides.get("height"), "width": sides.get("width"), "align_corners": False}
    if kind == "logits" and (None in (height, width) or (output["height"], output["width"]) != (height, width)):
        guesses.append("output.align_corners: false; how scores of a smaller map are enlarged is not in the graph")
    names = _class_names(sides.get("channels") if kind == "logits" else None, guesses)
    fixed = height or width
    whole = {"protocol": "whole", "scale": [width or fixed, height or fixed] if fixed else None}
    if fixed:
        guesses.append("inference.protocol: 'whole', images are stretched to the graph's size")
    else:
        guesses.append("inference.protocol: 'whole', at the images' own size; 'paper' and 'native' cut windows")
    guesses.append("inference.align_corners: false, as most models have it; those of this package: true")
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": path.stem[:MAX_NAME],
        "weights_sha256": None,
        "graph": path.name,
        "graph_sha256": hashlib.sha256(data).hexdigest(),
        "external": {name: hash_file(path.with_name(name)) for name in files},
        "input": entry,
        "output": output,
        "inference": whole | {"ratios": [1.0], "flip": True, "align_corners": False},
        "classes": names,
        "exporter": {"made_by": f"{model.producer_name} {model.producer_version}".strip()},
        "licence": None,
    }
    document["exporter"]["guessed"] = [guess.partition(":")[0] for guess in guesses]
    found = validate(document)
    if faults := found if isinstance(found, list) else disagreements(model, found):
        why = faults[0] if len(faults) == 1 else f"{len(faults)} faults, listed above"
        raise IntegrityError("this graph cannot be used", where=path, why=why, faults=faults)
    return Draft(path.with_name(PROTOCOL_FILE), document, tuple(guesses))


def _ports(model: onnx.ModelProto, path: Path) -> tuple[Port, Port]:
    """The one input, and the output that is scores or labels of pixels."""
    inputs = inputs_of(model)
    given = [port for port in outputs_of(model) if port.dtype in FLOATS + LABELS]
    fitting = [port for port in given if port.axes is None or len(port.axes) in (3, 4)]
    if len(inputs) == 1 and fitting and (inputs[0].axes is None or len(inputs[0].axes) == 4):
        return inputs[0], fitting[0]
    found = "; ".join(f"{port.name} {port.dtype} {port.axes}" for port in (*inputs, *outputs_of(model)))
    why = f"it takes and gives: {found}"
    raise IntegrityError("this graph does not map images to scores of their pixels", where=path, why=why)


def _describe_input(port: Port, guesses: list[str]) -> dict[str, Any]:
    axes = port.axes or (None,) * 4
    layout = "NHWC" if axes[3] == 3 and axes[1] != 3 else "NCHW"
    sides = {"height": None, "width": None, "batch": None} | port.sides(layout)
    if sides.pop("channels", None) != 3:
        guesses.append("input.layout: 'NCHW'; the graph does not say which axis the channels are")
    raw = port.dtype == "uint8"
    mean, std = ([0.0] * 3, [1.0] * 3) if raw else (list(MEAN_RGB), list(STD_RGB))
    guesses += [f"input.{name}: ImageNet's, of bytes from 0 to 255" for name in ("mean", "std") if not raw]
    guesses.append("input.channels: 'RGB'")
    entry = {"name": port.name, "dtype": port.dtype, "layout": layout, "channels": "RGB", "mean": mean, "std": std}
    return {**entry, **sides}


def _class_names(count: int | None, guesses: list[str]) -> list[str]:
    if count in (None, len(CLASSES)):
        said = f"the graph has {count}" if count else "the graph does not say how many there are"
        guesses.append(f"classes: the 19 of Cityscapes, in their order; {said}")
        return list(CLASSES)
    guesses.append(f"classes: numbers; the graph has {count}")
    return [f"class {index}" for index in range(count)]
