"""From a model file to a network: hashed first, matched exactly, nothing loaded in part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from dgmn2cli.checkpoint.formats import read_content
from dgmn2cli.checkpoint.pickles import Unfit
from dgmn2cli.checkpoint.unwrap import Checkpoint, unwrap
from dgmn2cli.errors import Dgmn2Error, IntegrityError, NonFiniteError
from dgmn2cli.files import atomic_write, open_regular

MAX_BYTES = 8 << 30
_SHOWN = 5
_NOT_A_CHECKPOINT: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    (b"\x89PNG", "it is a PNG image"),
    (b"\xff\xd8\xff", "it is a JPEG image"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself"),
    (b"%PDF", "it is a PDF document"),
    (b"\x1f\x8b", "it is a gzip archive; unpack it first"),
    (b"Rar!", "it is a RAR archive; unpack it first"),
    ((b"<!doctype", b"<html", b"<?xml"), "it is a web page, most likely a download page saved in place of the file"),
)
COUNTER = ".num_batches_tracked"  # of batch norms: not used in inference, and left out by some programs


def read_checkpoint(
    path: str | Path, *, sha256: str | None = None, ema: bool = False, inference: bool = False
) -> Checkpoint:
    """Reads a `.pth` or `.safetensors` file without executing anything in it.

    The file is hashed before it is unpickled; where it is a zip archive its own checksums are verified too.

    Args:
        sha256: the hash it must have; None when none is known.
        ema: take the averaged copy of the weights (`state_dict_ema`, `ema_state_dict`, ...).
        inference: only weights and meta are wanted: what else a training needs takes no memory and is not returned.

    Raises:
        ResourceError: the file does not exist or may not be read.
        IntegrityError: wrong hash, damaged, unsafe, not a checkpoint, or without the weights asked for.
        NonFiniteError: a weight is NaN or infinite.
    """
    path = Path(path)
    hint = "Check the path, or download the model with `dgmn2 download`."
    with open_regular(path, "cannot open the checkpoint", hint=hint) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            _refuse_foreign(file.read(512), size)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it is a BufferedReader
            if sha256 is not None and digest != sha256.lower():
                raise Unfit(f"its sha256 is {digest}, wanted {sha256}")
            content, kind, meta = read_content(file, size, path, mapped=inference)
            found = unwrap(Checkpoint(path, digest, size, kind, meta=meta), content, ema)
        except Unfit as error:
            what, hint = "cannot use the checkpoint", "Give the whole file of a model, .pth or .safetensors, undamaged."
            raise IntegrityError(what, where=path, why=str(error), hint=hint) from error.__cause__ or error
    check_finite(found.state, path)
    return replace(found, rest={}) if inference else found


def _refuse_foreign(head: bytes, size: int) -> None:
    if size == 0:
        raise Unfit("it is empty")
    if size > MAX_BYTES:
        raise Unfit(f"it has {size:,} bytes, more than any DGMN2 checkpoint ({MAX_BYTES:,})")
    text = head.lstrip().lower()
    for magic, why in _NOT_A_CHECKPOINT:
        if head.startswith(magic) or text.startswith(magic):
            raise Unfit(why)


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises NonFiniteError naming the tensors of `state` that hold NaN or infinity."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not _finite(value)]
    if bad:
        raise NonFiniteError(
            "the checkpoint holds NaN or infinite weights",
            where=path,
            why=f"{len(bad)} of {len(state)} tensors, first {', '.join(bad[:_SHOWN])}",
            hint="No mask can be computed with it; take an earlier checkpoint.",
        )


def _finite(value: Tensor) -> bool:
    """Whether all numbers are finite, also as float32, in which networks compute."""
    whole = value if value.dtype in (torch.float32, torch.float16, torch.bfloat16) else value.to(torch.float32)
    total = whole.sum()  # twenty times as fast; finite only if all are
    return bool(total.isfinite()) or bool(torch.isfinite(whole).all())


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads every tensor of `model` from `checkpoint`, exactly: same keys, same shapes, none missing, none left over.

    Only the batch norms' counters of seen batches may be absent; they are not used in inference.

    Raises:
        IntegrityError: with the counts and the first five of the missing, unexpected and misshapen keys.
    """
    _match(model, checkpoint.state, checkpoint.path)
    counters = {key: value for key, value in model.state_dict().items() if key.endswith(COUNTER)}
    with torch.no_grad():
        model.load_state_dict({**counters, **checkpoint.state}, strict=True)


def load_backbone_weights(backbone: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads an ImageNet checkpoint into a segmentor's backbone; its classification head is dropped.

    A segmentor's own checkpoint serves too: its `backbone.` entries are taken.

    Raises:
        IntegrityError: when fewer than all backbone tensors would load.
    """
    state = {key: value for key, value in checkpoint.state.items() if key not in ("head.weight", "head.bias")}
    prefixed = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    load_weights(backbone, replace(checkpoint, state=prefixed or state))


def differences(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What is wrong with `state` where `wanted` is asked for: tensors in words, by kind of difference."""
    shared = [(key, state[key], value) for key, value in wanted.items() if key in state]
    groups = {
        "missing": [key for key in wanted if key not in state and not key.endswith(COUNTER)],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {tuple(mine.shape)}, wanted {tuple(other.shape)}"
            for key, mine, other in shared
            if mine.shape != other.shape
        ],
        "of another type": [
            f"{key} {mine.dtype}, wanted {other.dtype}"
            for key, mine, other in shared
            if mine.is_floating_point() != other.is_floating_point()
        ],
    }
    return {name: keys for name, keys in groups.items() if keys}


def listed(groups: Mapping[str, list[str]]) -> list[str]:
    """The first few tensors of each kind of difference, a line each."""
    return [
        f"{name}: {'; '.join(keys[:_SHOWN])}" + f"; and {len(keys) - _SHOWN} more" * (len(keys) > _SHOWN)
        for name, keys in groups.items()
    ]


def _match(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    if groups := differences(wanted, state):
        raise IntegrityError(
            "the checkpoint does not fit the model; nothing was loaded",
            where=path,
            why=f"of {len(wanted)} tensors: {', '.join(f'{len(keys)} {name}' for name, keys in groups.items())}",
            hint="Check that the model name and the file belong together.",
            faults=listed(groups),
        )


def verify_checkpoint(path: str | Path, model: nn.Module) -> Checkpoint:
    """`path` read, if it is a complete checkpoint for `model`: safe, finite, every key and shape.

    `model` may live on the meta device; nothing is loaded into it.

    Raises:
        IntegrityError, NonFiniteError: as for `read_checkpoint` and `load_weights`.
    """
    checkpoint = read_checkpoint(path, inference=True)
    _match(model, checkpoint.state, checkpoint.path)
    return checkpoint


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
