"""The two file formats: what a `.pth` or `.safetensors` file holds, as plain containers.

Nothing in a file is executed: pickles are scanned, then read by PyTorch's restricted reader (`weights_only=True`),
never without it. Every way in which reading can fail becomes one `Unfit`.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from dgmn2cli.checkpoint.contents import plain
from dgmn2cli.checkpoint.pickles import References, Unfit, scan
from dgmn2cli.checkpoint.standins import stand_ins
from dgmn2cli.errors import is_utf8

MAX_HEADER_BYTES = 16 << 20
META_KEY = "dgmn2_meta"  # where a safetensors file keeps, as JSON, what a .pth file keeps under `meta`
LEGACY_PICKLES = 5  # magic number, version, machine, content, names of the storages
_turn = threading.Lock()
# all that PyTorch, zipfile and the restricted reader have been seen to raise on damaged or hostile files
_READ_ERRORS = (RuntimeError, LookupError, AttributeError, OSError, EOFError, TypeError, ValueError, AssertionError)
_FORMAT_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    SafetensorError,
)

Format = Literal["pth", "legacy pth", "safetensors"]  # a zip archive; before PyTorch 1.6


def read_content(file: BinaryIO, size: int, path: Path, *, mapped: bool = False) -> tuple[Any, Format, dict[str, Any]]:
    """The content of an open file of `size` bytes.

    Args:
        path: its name.
        mapped: leave tensors in the file until they are used, where the format allows it: what is never used (an
            optimiser's moments) then takes no memory.

    Returns:
        Plain containers and dense CPU tensors; the format; what a safetensors file says about itself.

    Raises:
        Unfit: damaged, unsafe, or of another kind.
    """
    file.seek(0)
    head = file.read(9)
    file.seek(0)
    try:
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size, MAX_HEADER_BYTES):
            data = file.read()
            return plain(load_safetensors(data), size), "safetensors", _safetensors_meta(data)
        archive = head.startswith(b"PK")
        references, stored = _scan_archive(file, size) if archive else (scan(file, LEGACY_PICKLES), False)
        allowed = stand_ins(references.names, references.like_dicts, references.like_lists)
        file.seek(0)
        mapped = mapped and stored and is_utf8(str(path))  # torch maps no file of another name
        with warnings.catch_warnings(), _only(allowed):
            warnings.simplefilter("ignore")
            value = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
        return plain(value, size), "pth" if archive else "legacy pth", {}
    except MemoryError as error:
        raise Unfit("it claims more memory than there is") from error
    except (*_READ_ERRORS, *_FORMAT_ERRORS) as error:
        if refused := re.search(r"GLOBAL (\S+) (?:was|whose)", str(error)):  # a line of some text has blanks
            why = f"it is unsafe: it asks to call {refused[1]}, which a file of weights never needs"
            raise Unfit(f"{why}; nothing in it was executed") from error
        raise Unfit("the file is damaged or of another kind") from error


@contextmanager
def _only(allowed: list[tuple[Callable[..., Any], str]]) -> Iterator[None]:
    """Within the block the restricted reader takes names for these and no others; PyTorch allows some more by itself.

    With `torch.serialization.safe_globals`, chance would decide between its exceptions and our stand-ins for them.
    PyTorch keeps what it has read of sparse tensors and checks it at the end of the next file that it reads whole.
    """
    unchecked: list[Tensor] = getattr(torch._utils, "_sparse_tensors_to_validate", [])
    with _turn:
        before, others = torch.serialization.get_safe_globals(), list(unchecked)
        unchecked.clear()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)  # type: ignore[arg-type]  # its hint has no tuples
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)
            unchecked[:] = others


def _scan_archive(file: BinaryIO, size: int) -> tuple[References, bool]:
    """Checks the zip archive's own CRC-32s (PyTorch does not), its names and sizes, and scans its pickle.

    Returns:
        What the pickle refers to, and whether all parts are stored uncompressed.
    """
    references = References()
    with zipfile.ZipFile(file) as archive:
        items = archive.infolist()
        claimed = sum(item.file_size for item in items)
        if claimed > 2 * size + MAX_HEADER_BYTES:
            raise Unfit(f"its {size} bytes claim to unpack to {claimed}")
        if len({item.filename for item in items}) != len(items):
            raise Unfit("its archive has two parts of one name")
        if any(item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for item in items):
            raise Unfit("its archive is compressed in a way that PyTorch does not use")
        if damaged := archive.testzip():
            raise Unfit(f"it is damaged: the checksum of its part {damaged} does not hold")
        for item in items:
            if item.filename.rpartition("/")[2] == "data.pkl":
                with archive.open(item) as content:
                    references = scan(content)
        return references, all(item.compress_type == zipfile.ZIP_STORED for item in items)


def _safetensors_meta(data: bytes) -> dict[str, Any]:
    """What the header says beside the tensors: our own `meta` as it was, other programs' texts under their names."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    texts = dict(header.get("__metadata__") or {})
    own = json.loads(texts.pop(META_KEY, "{}"))
    if not isinstance(own, dict):
        raise ValueError(f"{META_KEY} is no object")
    texts.pop("format", None)
    return dict(plain({**texts, **own}, len(data)))
