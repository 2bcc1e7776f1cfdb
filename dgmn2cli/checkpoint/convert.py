"""Conversion of model files: `.pth` to `.safetensors` and back, every entry accounted for, the result read again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes

from dgmn2cli.checkpoint.contents import digest
from dgmn2cli.checkpoint.describe import in_few_words
from dgmn2cli.checkpoint.formats import META_KEY
from dgmn2cli.checkpoint.unwrap import Checkpoint
from dgmn2cli.checkpoint.weights import read_checkpoint, write_checkpoint
from dgmn2cli.errors import ConfigError, IntegrityError
from dgmn2cli.files import atomic_write

SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Line:
    """What became of one entry of the file."""

    key: str  # its name; `meta.NAME` for what the file says about itself
    outcome: str  # `kept`, `renamed` or `dropped`
    shape: tuple[int, ...] | None = None  # of a tensor, else None
    dtype: str = ""  # of a tensor, else empty
    note: str = ""  # why it was dropped, its former name, or its value in a few words


@dataclass(frozen=True)
class ConversionReport:
    """What was converted."""

    # source, source_sha256, source_size: the file that was read
    source: Path
    source_sha256: str
    source_size: int
    # target, target_sha256, target_size: the file that was written, read again and compared
    target: Path
    target_sha256: str
    target_size: int
    # kept, dropped: how many entries
    kept: int
    dropped: int
    lines: tuple[Line, ...]  # every entry
    notes: tuple[str, ...] = ()  # which weights were taken, what was left out


def convert(source: Path, target: Path, *, overwrite: bool = False, ema: bool = False) -> ConversionReport:
    """Writes the weights of `source`, and what it says about itself, in the format that `target`'s name asks for.

    The optimiser's state and all else a training needs to go on are left out. The tensors keep their bits: the result
    is read again and compared before this returns.

    Args:
        ema: write the averaged copy of the weights.

    Raises:
        ConfigError: the target's name ends in nothing known, or it exists (without `overwrite`), or is the source.
        ResourceError, IntegrityError, NonFiniteError: as for `read_checkpoint`; the target cannot be written.
    """
    _check_target(source, target, overwrite)
    read = read_checkpoint(source, ema=ema)
    lines = list(_tensor_lines(read))
    if target.suffix.lower() == ".safetensors":
        meta, meta_lines = _as_json(read.meta)
        # clones: safetensors refuses tensors that share memory
        tensors = {key: value.contiguous().clone() for key, value in read.state.items()}
        texts = {"format": "pt", META_KEY: json.dumps(meta, ensure_ascii=False, allow_nan=False)}
        atomic_write(target, safetensors_bytes(tensors, metadata=texts))
    else:
        meta, meta_lines = read.meta, [_kept_meta(key, value) for key, value in read.meta.items()]
        write_checkpoint(target, {key: value.contiguous() for key, value in read.state.items()}, meta)
    lines += [*meta_lines, *(Line(key, "dropped", note=_why(key, value)) for key, value in read.rest.items())]
    written = _read_again(target, read, meta)
    dropped = sum(line.outcome == "dropped" for line in lines)
    return ConversionReport(
        source,
        read.sha256,
        read.size,
        target,
        written.sha256,
        written.size,
        len(lines) - dropped,
        dropped,
        tuple(lines),
        read.notes,
    )


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if target.suffix.lower() not in SUFFIXES:
        why = f"it ends in '{target.suffix[:20]}', wanted {' or '.join(SUFFIXES)}"
        raise ConfigError("unknown format", where=target, why=why, hint="The name's end says which format to write.")
    try:
        target.stat()
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError("not a possible file name", where=target, why=why, hint="Choose another name.") from error
    if there and source.exists() and target.samefile(source):
        why, hint = "it would overwrite its own source", "Name another file to write."
        raise ConfigError("the file is not converted", where=target, why=why, hint=hint)
    if target.is_dir():
        raise ConfigError("the file is not converted", where=target, why="it is a folder", hint="Name a file in it.")
    if there and not overwrite:
        hint = "Add --overwrite, or choose another name."
        raise ConfigError("the file is not converted", where=target, why="it exists", hint=hint)


def _tensor_lines(read: Checkpoint) -> Iterator[Line]:
    for key, value in read.state.items():
        former = read.renamed.get(key)
        outcome, note = ("renamed", f"was {former}") if former else ("kept", "")
        yield Line(key, outcome, tuple(value.shape), str(value.dtype).removeprefix("torch."), note)


def _kept_meta(key: object, value: Any) -> Line:
    return Line(f"meta.{key}", "kept", note=in_few_words(value))


def _why(key: str, value: Any) -> str:
    known = {"optimizer": "the optimiser's state", "training": "the state of the training"}
    return f"{known.get(key, 'not part of the model')} ({in_few_words(value)})"


def _as_json(meta: Mapping[str, Any]) -> tuple[dict[str, Any], list[Line]]:
    """What of `meta` a JSON text can hold; tuples become lists, names texts."""
    kept: dict[str, Any] = {}
    lines = []
    for key, value in meta.items():
        try:
            kept[str(key)] = json.loads(json.dumps(value, allow_nan=False))
            lines.append(_kept_meta(key, value))
        except (TypeError, ValueError) as error:
            lines.append(Line(f"meta.{key}", "dropped", note=f"not for JSON: {error} ({in_few_words(value)})"))
    return kept, lines


def _read_again(target: Path, read: Checkpoint, meta: Mapping[str, Any]) -> Checkpoint:
    """The file just written, compared with what it was made from, bit by bit."""
    written = read_checkpoint(target)
    same = written.state.keys() == read.state.keys() and digest(written.meta) == digest(meta)
    if not same or any(digest(value) != digest(read.state[key]) for key, value in written.state.items()):
        raise IntegrityError("the converted file is not what was read", where=target, hint="Is the disk damaged?")
    return written
