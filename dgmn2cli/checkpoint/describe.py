"""The description of a model file: which network, whose bytes, what it says about itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dgmn2cli.checkpoint.contents import digest
from dgmn2cli.checkpoint.recognise import Recognised, recognise
from dgmn2cli.checkpoint.unwrap import Checkpoint
from dgmn2cli.checkpoint.weights import read_checkpoint
from dgmn2cli.config import load_config_text
from dgmn2cli.errors import ConfigError
from dgmn2cli.validation import parse_toml

MAX_CONFIG = 1_000_000  # characters
_SHOWN = 60  # characters of one value
_CONFIG_KEYS = ("config", "cfg")
HashState = Literal["pinned", "recorded", "unknown"]
KnownHash = tuple[str, str, Literal["pinned", "recorded"]]  # zoo key, sha256, where it is known from
DigestState = Literal["holds", "does not hold", "none"]


@dataclass(frozen=True)
class TrainingConfig:
    """The training configuration in a file's `meta`."""

    language: str  # `dgmn2 TOML` or `MMSegmentation`
    lines: int  # of the text
    summary: str = ""  # what it trains, in words; empty where it cannot be read
    fault: str = ""  # why it cannot be read; empty where it can


@dataclass(frozen=True)
class FileInfo:
    """What a model file is."""

    file: Checkpoint  # as it was read
    network: Recognised  # whose weights it holds
    model: str  # that network, in words
    exact: bool  # every tensor of the network is there, in its shape, and no other
    hash_state: HashState  # `pinned` or `recorded` if the hash is that of an entry of the zoo, else `unknown`
    hash_of: str  # that entry's key
    hash_note: str  # what else there is to say of the hash; empty if nothing
    # tensors, values: how many, and how many numbers they hold
    tensors: int
    values: int
    dtypes: dict[str, int]  # tensors by number type
    # iteration, epoch: of the training; None where the file does not say
    iteration: int | None
    epoch: int | None
    meta: dict[str, str]  # what else the file says about itself, each value in a few words
    training_config: TrainingConfig | None  # the configuration it was trained with, if it is there
    optimizer: str  # what there is of an optimiser's state; empty if nothing
    others: tuple[str, ...]  # further entries of the file
    digest: DigestState  # whether the digest that `dgmn2 train` writes holds


def describe(path: str | Path, known: Sequence[KnownHash]) -> FileInfo:
    """What the file at `path` is.

    Args:
        known: the hashes of published files, from the manifest (`pinned`) and from the cache (`recorded`).

    Raises:
        ResourceError, IntegrityError, NonFiniteError: it cannot be opened, is no checkpoint, or holds NaN.
    """
    read = read_checkpoint(path)
    found = recognise(read.state)
    state, owner, note = _hash_state(read.sha256, found, known)
    meta, rest = dict(read.meta), dict(read.rest)
    text = config_text(read)
    training = rest.pop("training", None)
    return FileInfo(
        file=read,
        network=found,
        model=found.in_words(),
        exact=found.exact,
        hash_state=state,
        hash_of=owner,
        hash_note=note,
        tensors=len(read.state),
        values=sum(value.numel() for value in read.state.values()),
        dtypes=dict(Counter(str(value.dtype).removeprefix("torch.") for value in read.state.values())),
        iteration=_number(meta.pop("iter", None)),
        epoch=_number(meta.pop("epoch", None)),
        meta={str(key): in_few_words(value) for key, value in meta.items() if key not in _CONFIG_KEYS},
        training_config=None if text is None else _about_config(text, read.path),
        optimizer=_about_optimizer(rest.pop("optimizer", None)),
        others=tuple(f"{key}: {in_few_words(value)}" for key, value in rest.items()),
        digest=_digest_state(read, training),
    )


def config_text(read: Checkpoint) -> str | None:
    """The training configuration in the file's `meta`, if it is there as text."""
    return next((read.meta[key] for key in _CONFIG_KEYS if isinstance(read.meta.get(key), str)), None)


def in_few_words(value: Any) -> str:
    """A value of any kind, short: numbers and texts as they are, of containers how many items."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, str) and ("\n" in value or len(value) > _SHOWN):
        lines = value.count("\n") + 1
        return f"text of {lines} lines" if lines > 1 else f"{value[: _SHOWN - 3]}..."
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    if isinstance(value, (list, tuple)):
        names = all(isinstance(item, str) for item in value)
        text = f": {', '.join(value)}" if names and value else ""
        return f"{len(value)} items{text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}"
    return str(value)


def _hash_state(sha256: str, found: Recognised, known: Sequence[KnownHash]) -> tuple[HashState, str, str]:
    """Whose hash it is; and, where it is nobody's, whether the zoo expects another one for this model."""
    for key, other, state in known:
        if other == sha256:
            return state, key, ""
    for key, other, state in known:
        if found.published and key == found.key:
            where = f"the published {key}" if state == "pinned" else f"the {key} in the cache"
            return "unknown", "", f"it is not {where}, whose hash is {other}"
    return "unknown", "", ""


def _about_config(text: str, path: Path) -> TrainingConfig:
    lines = text.count("\n") + 1
    if len(text) > MAX_CONFIG:
        return TrainingConfig("unknown", lines, fault=f"it is longer than {MAX_CONFIG:,} characters")
    with suppress(ValueError, RecursionError):
        document = parse_toml(text)
        if isinstance(document.get("model"), dict):
            return TrainingConfig("dgmn2 TOML", lines, _toml_summary(document))
    try:
        config = load_config_text(text, f"meta of {path.name}")
    except ConfigError as error:
        return TrainingConfig("MMSegmentation", lines, fault=(error.fault_lines() or [error.why])[0])
    model, train = config.model, config.train
    words = f"{model.head}-{model.backbone}, {model.num_classes} classes, {train.iters} iterations"
    return TrainingConfig("MMSegmentation", lines, f"{words}, crop {config.augment.crop}, lr {config.optim.lr:g}")


def _toml_summary(document: dict[str, Any]) -> str:
    def of(section: str, name: str) -> str:
        table = document.get(section)
        return in_few_words(table.get(name)) if isinstance(table, dict) else "None"

    words = f"{of('model', 'head')}-{of('model', 'backbone')}, {of('model', 'num_classes')} classes"
    return f"{words}, {of('train', 'iters')} iterations, crop {of('augment', 'crop')}, lr {of('optim', 'lr')}"


def _about_optimizer(saved: Any) -> str:
    """An optimiser's state in words; empty if there is none."""
    if saved is None:
        return ""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
        return in_few_words(saved)
    moments = [item for entry in saved["state"].values() if isinstance(entry, Mapping) for item in entry.values()]
    held = sum(item.numel() * item.element_size() for item in moments if isinstance(item, Tensor))
    return f"state of {len(saved['state'])} parameters, {held / 1e6:.1f} MB"


def _digest_state(read: Checkpoint, training: Any) -> DigestState:
    """As `dgmn2 train` checks it before it goes on from the file."""
    if not isinstance(training, Mapping) or "digest" not in training:
        return "none"
    others = {key: value for key, value in training.items() if key != "digest"}
    content = {"meta": read.meta, "state_dict": read.state, "optimizer": read.rest.get("optimizer"), "training": others}
    return "holds" if digest(content) == training["digest"] else "does not hold"


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
