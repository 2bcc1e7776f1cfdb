"""`protocol.json` beside an exported graph: what it may say, declared once, and reading it. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from dgmn2cli.config.schema import MAX_NAME, NAMES_ONCE, ClassName, Color, InferenceProcedure, Pixels, Text, setting
from dgmn2cli.errors import ConfigError, IntegrityError
from dgmn2cli.files import absence, read_bounded, read_text
from dgmn2cli.validation import STRICT, Printable, check, must, parse_json, raise_faults, schema_of, show

PROTOCOL_FILE = "protocol.json"
FORMAT_VERSION = 1
MAX_BYTES = 1 << 20  # of the protocol
MAX_GRAPH = (1 << 31) - 1  # bytes of a graph: protobuf's own limit
MAX_CLASSES = 255  # class ids are bytes, and 255 marks ignored pixels
LAZY = ConfigDict(**STRICT, defer_build=True)
_WHAT = "cannot use the graph's protocol"

BARE = must(lambda text: os.path.basename(text) == text.strip(". ") != "", "wanted a file's name, without a folder")
FileName = Annotated[Printable, Field(min_length=1, max_length=MAX_NAME), BARE]
Name = Annotated[Printable, Field(min_length=1, max_length=MAX_NAME)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", json_schema_extra={"$comment": "64 lower-case hex digits"})]
Level = Annotated[StrictFloat, Field(ge=-1e6, le=1e6)]
Spread = Annotated[StrictFloat, Field(gt=0, le=1e6)]
Batch = Annotated[StrictInt, Field(ge=1, le=1024)]


@validated(frozen=True, config=LAZY)
class GraphInput:
    """The graph's input: normalised images, or parts of them."""

    name: Name = setting("images", "Name in the graph.")
    dtype: Literal["float32", "float16", "uint8"] = setting("float32", "Of its numbers.")
    layout: Literal["NCHW", "NHWC"] = setting("NCHW", "Order of its axes.")
    channels: Literal["RGB", "BGR"] = setting("RGB", "Order of its channels; `mean` and `std` follow it.")
    mean: tuple[Level, Level, Level] = setting((123.675, 116.28, 103.53), "Subtracted from bytes of 0 to 255.")
    std: tuple[Spread, Spread, Spread] = setting((58.395, 57.12, 57.375), "What that is divided by.")
    height: Pixels | None = setting(None, "Rows; null: any number.")
    width: Pixels | None = setting(None, "Columns; null: any number.")
    batch: Batch | None = setting(None, "Images at a time; null: any number.")

    @property
    def size(self) -> str:
        """`WIDTHxHEIGHT` that it takes, in words."""
        return f"{self.width or 'any'}x{self.height or 'any'}"

    def fits(self, height: int | None, width: int | None) -> bool:
        """Whether it takes images of this size."""
        return self.height in (None, height) and self.width in (None, width)


@validated(frozen=True, config=LAZY)
class GraphOutput:
    """The graph's output: class scores of each pixel, at the input's size or smaller; or the classes themselves."""

    name: Name = setting("logits", "Name in the graph.")
    kind: Literal["logits", "labels"] = setting("logits", "Scores (B, classes, h, w), or class ids (B, h, w).")
    height: Pixels | None = setting(None, "Rows; null: whatever the graph gives.")
    width: Pixels | None = setting(None, "Columns; null: whatever the graph gives.")
    align_corners: StrictBool = setting(False, "How a smaller output is enlarged (bilinear) to the input's size.")


@validated(frozen=True, config=LAZY, kw_only=True)
class GraphInference(InferenceProcedure):
    """How an image is segmented: as `inference` of a configuration, or in one piece, which knows no windows."""

    align_corners: StrictBool = Field(description="How scores are resized (bilinear) to the image's size.")


@validated(frozen=True, config=LAZY)
class GraphProtocol:
    """All that must be known beside a graph to segment images with it."""

    format_version: Literal[1] = Field(description="Form of this file.")
    graph: FileName = Field(description="File of the graph, in the same folder.")
    graph_sha256: Sha256 = Field(description="Hash of that file.")
    classes: Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=MAX_CLASSES), NAMES_ONCE] = Field(
        description="Class names in the order of their ids."
    )
    inference: GraphInference = Field(description="The test procedure.")
    model: Name = setting("graph", "What reports call it; of an exported model its key.")
    weights_sha256: Sha256 | None = setting(None, "Hash of the weights' file; null: not known.")
    external: dict[FileName, Sha256] = Field(
        default_factory=dict, description="Files in the same folder that hold the graph's larger tensors: their hashes."
    )
    input: GraphInput = Field(default_factory=GraphInput, description="What goes in.")
    output: GraphOutput = Field(default_factory=GraphOutput, description="What comes out.")
    palette: Annotated[tuple[Color, ...], Field(max_length=MAX_CLASSES)] = setting(
        (), "Red, green, blue of each class; empty: chosen."
    )
    exporter: dict[str, Any] = Field(default_factory=dict, description="What made the graph, in which versions.")
    licence: Text | None = setting(None, "Licence of the weights (SPDX); null: not known.")
    parity: dict[str, Any] = Field(default_factory=dict, description="How far the graph was seen to be from the model.")


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[GraphProtocol]:
    return TypeAdapter(GraphProtocol)


def protocol_schema() -> dict[str, Any]:
    """The JSON schema of a `protocol.json`."""
    return schema_of(_adapter())


@dataclass(frozen=True)
class Graph:
    """A graph on disk with its protocol."""

    path: Path  # the graph's file
    protocol: GraphProtocol  # what lies beside it

    def read(self) -> tuple[bytes, dict[str, bytes]]:
        """The graph's file, and by name those beside it that hold tensors; all compared with the protocol's hashes.

        Raises:
            IntegrityError: a file is another one than the protocol's, or no file.
            ResourceError: a file is missing or cannot be read.
        """
        named = self.protocol.external
        external = {name: self._hashed(self.path.with_name(name), named[name]) for name in named}
        return self._hashed(self.path, self.protocol.graph_sha256), external

    def _hashed(self, path: Path, wanted: str) -> bytes:
        data = read_bounded(path, MAX_GRAPH, "cannot read the graph")
        found = hashlib.sha256(data).hexdigest()
        if found != wanted:
            why = f"its sha256 is {found[:12]}..., {PROTOCOL_FILE} says {wanted[:12]}..."
            hint = "Export it again; or if you changed the graph, draft its protocol again."
            raise IntegrityError("the graph is not the one that its protocol describes", where=path, why=why, hint=hint)
        return data


def load_graph(path: str | Path) -> Graph:
    """The graph that `path` names, a folder with a `protocol.json` or an ONNX file beside one; not read itself.

    Raises:
        ConfigError: there is no protocol, it is wrong (all faults at once), or it describes another graph.
        ResourceError: there is nothing, or the protocol may not be read.
    """
    path = Path(path)
    folder = path if os.path.isdir(path) else path.parent
    place = folder / PROTOCOL_FILE
    if path.name == PROTOCOL_FILE or not os.path.lexists(path):
        wanted = "Give the folder that `dgmn2 export` made, or an ONNX file with a protocol.json beside it."
        why = absence(path) if not os.path.lexists(path) else "it is the protocol"
        raise ConfigError("this names no graph", where=path, why=why, hint=wanted)
    if not os.path.lexists(place):
        file = path if path is not folder else folder / "GRAPH.onnx"
        hint = f"Draft one with `dgmn2 export --describe {file}`, and complete it."
        raise ConfigError("the graph has no protocol", where=path, why=f"there is no {place}", hint=hint)
    protocol = read_protocol(place)
    if path is not folder and path.name != protocol.graph:
        why = f"{PROTOCOL_FILE} beside it describes {protocol.graph}"
        raise ConfigError("the graph has no protocol", where=path, why=why, hint="Give each graph a folder of its own.")
    if protocol.graph.endswith(".pt2"):
        why, hint = "it is a program of torch.export", "Export it with --format onnx; torch.export.load opens this one."
        raise ConfigError("no runtime here takes this graph", where=folder / protocol.graph, why=why, hint=hint)
    return Graph(folder / protocol.graph, protocol)


def read_protocol(path: str | Path) -> GraphProtocol:
    """Reads and checks a `protocol.json`.

    Raises:
        ConfigError: unreadable, not JSON, another version, unknown keys or wrong values; all are named at once.
        ResourceError: the file may not be read.
    """
    path = Path(path)
    text = read_text(path, MAX_BYTES, _WHAT, kind=ConfigError, hint=f"It should be a {PROTOCOL_FILE}.")
    try:
        document, repeated = parse_json(text)
    except ValueError as error:
        raise ConfigError(_WHAT, where=path, why=str(error)) from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        why = f"its format_version is {show(version)}, this program reads {FORMAT_VERSION}"
        raise ConfigError(_WHAT, where=path, why=why, hint="Update dgmn2cli, or export the model again.")
    found = validate(document)
    faults = [*map(str, repeated), *(found if isinstance(found, list) else [])]
    if faults or isinstance(found, list):
        raise_faults(_WHAT, faults, path)
    return found


def validate(document: Any) -> GraphProtocol | list[str]:
    """The protocol that a document is, or all that is wrong with it."""
    found = check(_adapter(), document)
    faults = list(map(str, found)) if isinstance(found, list) else _contradictions(found)
    return faults or found  # type: ignore[return-value]  # no faults: it is no list


def _contradictions(found: GraphProtocol) -> list[str]:
    """Faults between keys that are each well-formed."""
    faults, inference, taken = [], found.inference, found.input
    if len(found.palette) not in (0, len(found.classes)):
        faults.append(f"palette: {len(found.palette)} colours for {len(found.classes)} classes")
    if taken.dtype == "uint8" and (set(taken.mean) != {0.0} or set(taken.std) != {1.0}):
        faults.append("input.mean and input.std: bytes are not normalised; wanted [0, 0, 0] and [1, 1, 1]")
    if found.graph in found.external or PROTOCOL_FILE in (found.graph, *found.external):
        faults.append("graph and external: wanted different files")
    if inference.protocol == "paper" and inference.scale is None:
        faults.append("inference.scale: none, wanted width and height for 'paper'")
    if inference.stride > inference.window:
        faults.append(f"inference.stride: {inference.stride}, wanted at most inference.window")
    whole = inference.protocol == "whole"
    width, height = (inference.scale or (None, None)) if whole else (inference.window, inference.window)
    if not taken.fits(height, width):
        name, seen = ("scale", inference.scale) if whole else ("window", inference.window)
        faults.append(f"inference.{name}: {show(seen)}, but the graph takes {taken.size}")
    return faults
