"""Owns what stands between a model file and a network: safe reading, exact matching, nothing loaded in part.

Nothing in a file is executed: pickles are read by PyTorch's restricted reader (`weights_only=True`), never without it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from dgmn2cli.errors import Dgmn2Error, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.model.oldpickle import SAFE_GLOBALS
from dgmn2cli.reports import atomic_write

MAX_BYTES = 8 << 30
MAX_HEADER_BYTES = 16 << 20
_CHUNK = 1 << 22
_SHOWN = 5
_NOT_A_CHECKPOINT = (
    (b"\x89PNG", "it is a PNG image"),
    (b"\xff\xd8\xff", "it is a JPEG image"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself"),
    (b"%PDF", "it is a PDF document"),
    (b"\x1f\x8b", "it is a gzip archive; unpack it first"),
    (b"Rar!", "it is a RAR archive; unpack it first"),
)
_WRAPPERS = ("state_dict", "model")
# everything PyTorch, zipfile and the restricted reader have been seen to raise on damaged or hostile files
_READ_ERRORS = (
    RuntimeError, pickle.UnpicklingError, UnicodeDecodeError, LookupError, AttributeError, OSError, EOFError,
    TypeError, ValueError, AssertionError, NotImplementedError, OverflowError, RecursionError,
    zipfile.BadZipFile, SafetensorError,
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A model file that was read safely.

    Attributes:
        path: the file.
        sha256: hash of the bytes that were read.
        size: bytes.
        state: parameter and buffer tensors by name, `module.` prefix removed, on the CPU.
        meta: what the file says about itself (classes, palette, configuration text, iteration), if anything.
        rest: further entries beside the weights, such as `optimizer`.
    """

    path: Path
    sha256: str
    size: int
    state: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path, *, sha256: str | None = None) -> Checkpoint:
    """Reads a `.pth` or `.safetensors` file without executing anything in it.

    The file is hashed before it is unpickled; where it is a zip archive its own checksums are verified too.

    Args:
        path: the file.
        sha256: the hash it must have; None when none is known.

    Raises:
        ResourceError: the file does not exist or may not be read.
        IntegrityError: wrong hash, damaged, unsafe, or not a checkpoint.
        NonFiniteError: a weight is NaN or infinite.
    """
    path = Path(path)
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _refuse_foreign(path, file, size)
        digest = _hash(file)
        if sha256 is not None and digest != sha256.lower():
            raise IntegrityError(
                "the checkpoint is not the file it should be",
                where=path,
                why=f"its sha256 is {digest}, wanted {sha256}",
                hint="Delete it and download it again.",
            )
        content = _read(path, file, size)
    state, meta, rest = _unwrap(path, content)
    check_finite(state, path)
    return Checkpoint(path, digest, size, state, meta, rest)


def _open_regular(path: Path) -> BinaryIO:
    """Opens a regular file; a FIFO or a device would block or never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ResourceError(
            "cannot open the checkpoint", where=path, why=reason, hint="Check the path, or download the model."
        ) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "not a regular file"
        raise IntegrityError(
            "this is not a checkpoint", where=path, why=f"it is {kind}", hint="Give the path of a .pth file."
        )
    return os.fdopen(descriptor, "rb")


def _refuse_foreign(path: Path, file: BinaryIO, size: int) -> None:
    head = file.read(512)
    why = next((why for magic, why in _NOT_A_CHECKPOINT if head.startswith(magic)), "")
    if size == 0:
        why = "it is empty"
    elif size > MAX_BYTES:
        why = f"it has {size} bytes, more than any DGMN2 checkpoint ({MAX_BYTES})"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        why = "it is a web page, most likely a download page saved in place of the file"
    if why:
        raise IntegrityError(
            "this is not a checkpoint", where=path, why=why, hint="Download the checkpoint again and try once more."
        )


def _hash(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path, file: BinaryIO, size: int) -> Any:
    """The file's content as plain containers and tensors; every way of failing becomes one error."""
    file.seek(0)
    head = file.read(9)
    file.seek(0)
    try:
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size, MAX_HEADER_BYTES):
            return load_safetensors(file.read())
        if head.startswith(b"PK"):
            _verify_archive(path, file, size)
        with warnings.catch_warnings(), torch.serialization.safe_globals(SAFE_GLOBALS):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise IntegrityError(
            "the checkpoint cannot be read", where=path, why="it claims more memory than there is"
        ) from error
    except _READ_ERRORS as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise IntegrityError(
                "the checkpoint is unsafe and was not loaded",
                where=path,
                why=f"it asks to call {refused[1]}, which a file of weights never needs",
                hint="Nothing in it was executed. Get the file from its publisher.",
            ) from error
        raise IntegrityError(
            "the checkpoint cannot be read",
            where=path,
            why=f"the file is damaged or of another kind ({type(error).__name__})",
            hint="Download it again.",
        ) from error


def _verify_archive(path: Path, file: BinaryIO, size: int) -> None:
    """Checks the zip archive's own CRC-32s (PyTorch does not) and that it does not unpack to more than it holds."""
    with zipfile.ZipFile(file) as archive:
        claimed = sum(item.file_size for item in archive.infolist())
        if claimed > 2 * size + MAX_HEADER_BYTES:
            raise IntegrityError(
                "the checkpoint cannot be read",
                where=path,
                why=f"its {size} bytes claim to unpack to {claimed}",
                hint="Download it again.",
            )
        damaged = archive.testzip()
    file.seek(0)
    if damaged is not None:
        raise IntegrityError(
            "the checkpoint is damaged", where=path, why=f"the checksum of its part {damaged} does not hold",
            hint="Download it again.",
        )  # fmt: skip


def _unwrap(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Splits a file's content into weights, meta and the rest; knows bare, `state_dict` and `model` wrappers."""
    if not isinstance(content, Mapping):
        raise IntegrityError(
            "this is not a checkpoint", where=path, why=f"it holds a {type(content).__name__}, wanted named tensors"
        )
    wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
    weights = content[wrapper] if wrapper else content
    meta = content.get("meta") if wrapper else None
    rest = {str(k): v for k, v in content.items() if k not in (wrapper, "meta")} if wrapper else {}
    state: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise IntegrityError(
                "this is not a checkpoint",
                where=path,
                why=f"its entry {str(key)[:80]!r} is a {type(value).__name__}, wanted a dense tensor",
                hint="Give a file that holds a state dict, bare or under 'state_dict' or 'model'.",
            )
        state[str(key).removeprefix("module.")] = value
    if not state:
        raise IntegrityError("this is not a checkpoint", where=path, why="it holds no tensors")
    return state, dict(meta) if isinstance(meta, Mapping) else {}, rest


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises NonFiniteError naming the tensors of `state` that hold NaN or infinity."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise NonFiniteError(
            "the checkpoint holds NaN or infinite weights",
            where=path,
            why=f"{len(bad)} of {len(state)} tensors, first {', '.join(bad[:_SHOWN])}",
            hint="No mask can be computed with it; take an earlier checkpoint.",
        )


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads every tensor of `model` from `checkpoint`, exactly: same keys, same shapes, none missing, none left over.

    Raises:
        IntegrityError: with the counts and the first five of the missing, unexpected and misshapen keys.
    """
    _match(model, checkpoint.state, checkpoint.path)
    with torch.no_grad():
        model.load_state_dict(checkpoint.state, strict=True)


def load_backbone_weights(backbone: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads an ImageNet checkpoint into a segmentor's backbone; its classification head is dropped.

    A segmentor's own checkpoint serves too: its `backbone.` entries are taken.

    Raises:
        IntegrityError: when fewer than all backbone tensors would load.
    """
    state = {key: value for key, value in checkpoint.state.items() if key not in ("head.weight", "head.bias")}
    prefixed = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    state = prefixed or state
    _match(backbone, state, checkpoint.path)
    with torch.no_grad():
        backbone.load_state_dict(state, strict=True)


def _match(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shared = [key for key in wanted if key in state]
    shapes = [
        f"{key} {tuple(state[key].shape)}, wanted {tuple(wanted[key].shape)}"
        for key in shared
        if state[key].shape != wanted[key].shape
    ]
    kinds = [
        f"{key} {state[key].dtype}, wanted {wanted[key].dtype}"
        for key in shared
        if state[key].is_floating_point() != wanted[key].is_floating_point() or state[key].is_complex()
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "of another type": kinds}
    if any(groups.values()):
        counts = ", ".join(f"{len(keys)} {name}" for name, keys in groups.items() if keys)
        raise IntegrityError(
            "the checkpoint does not fit the model; nothing was loaded",
            where=path,
            why=f"of {len(wanted)} tensors: {counts}",
            hint="Check that the model name and the file belong together.",
            faults=[fault for name, keys in groups.items() if keys for fault in _listed(name, keys)],
        )


def _listed(name: str, keys: list[str]) -> Iterable[str]:
    rest = len(keys) - _SHOWN
    yield f"{name}: {'; '.join(keys[:_SHOWN])}" + (f"; and {rest} more" if rest > 0 else "")


def verify_checkpoint(path: str | Path, model: nn.Module) -> str:
    """Checks that `path` is a complete checkpoint for `model`: safe, finite, every key and shape. Returns its sha256.

    `model` may live on the meta device; nothing is loaded into it.

    Raises:
        IntegrityError, NonFiniteError: as for `read_checkpoint` and `load_weights`.
    """
    checkpoint = read_checkpoint(path)
    _match(model, checkpoint.state, checkpoint.path)
    return checkpoint.sha256


def write_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], meta: Mapping[str, Any], rest: Mapping[str, Any] | None = None
) -> Path:
    """Writes a checkpoint in the published format, `{'meta', 'state_dict', ...}`, whole or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    content = {"meta": dict(meta), "state_dict": dict(state), **(rest or {})}

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch's writer hides the file system's own error behind this
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise Dgmn2Error("cannot save the checkpoint", where=path, why=str(error)) from error

    return atomic_write(path, write)
