"""A training's state on disk: what exact continuation needs, written whole and durable, believed only if intact.

A checkpoint has the published format, `{'meta', 'state_dict', 'optimizer'}`, and one entry more, `training`. Everything
random in a training draws from generators seeded with (seed, process, step) or (seed, sample): the number of steps done
is the state of all of them, and of the sampler.

The folder holds `last.pth`, `previous.pth` (the one before), `best.pth` and `iter_N.pth`. They are names of the same
few files: a state is written once and then linked. At every moment at least one durable, complete state is there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmn2cli.checkpoint.contents import digest
from dgmn2cli.checkpoint.weights import check_finite, read_checkpoint, write_checkpoint
from dgmn2cli.errors import ConfigError, IntegrityError, NonFiniteError
from dgmn2cli.files import atomic_write, local_write_errors, sync_folder
from dgmn2cli.training.report import Best

VERSION = 1
_SAVED = ("validated", "log_bytes", "environment", "seed", "scaler")  # of a state, as they are
NEXT, LAST, PREVIOUS, BEST = "next.pth", "last.pth", "previous.pth", "best.pth"


@dataclass(frozen=True)
class TrainState:
    """Where a training stands."""

    iteration: int  # optimiser steps done
    weights: Mapping[str, Tensor]  # the network's state dict as it trains
    optimizer: dict[str, Any]  # the optimiser's state dict
    # the moving average of the weights, where one is kept: what is evaluated and used
    average: Mapping[str, Tensor] | None = None
    scaler: dict[str, Any] = field(default_factory=dict)  # state of the float16 loss scaling, where it is used
    best: Best | None = None  # the best evaluation so far
    validated: bool = True  # the evaluation due after this step, if any, is done
    log_bytes: int = 0  # length of the log
    # what determined the numbers beside the configuration: processes, threads, ...; empty if not known
    environment: Mapping[str, int | str] = field(default_factory=dict)
    seed: int = 0  # of the run
    config: str = ""  # the run's configuration, as TOML; empty if not known
    exact: bool = True  # whether all of it was saved by this program; False for other programs' checkpoints

    @property
    def usable(self) -> Mapping[str, Tensor]:
        """The weights to evaluate and to use: the moving average where one is kept."""
        return self.weights if self.average is None else self.average


def save_state(path: Path, state: TrainState, meta: Mapping[str, Any]) -> Path:
    """Writes a checkpoint, whole and durable or not at all.

    Args:
        meta: what the file says about itself: `CLASSES`, `PALETTE`, `config`, ...

    Raises:
        NonFiniteError: a weight or a moment of the optimiser is NaN or infinite; nothing is written.
        ResourceError: the file cannot be written.
    """
    for weights in (state.weights, state.average or {}):
        check_finite(weights, path)
    check_finite(_moments(state.optimizer), path)
    extra: dict[str, Any] = {name: getattr(state, name) for name in _SAVED}
    extra |= {"version": VERSION, "environment": dict(state.environment)}
    extra["best"] = [state.best.miou, state.best.iteration] if state.best else []
    if state.average is not None:
        extra["weights"] = dict(state.weights)
    about = {**meta, "iter": state.iteration}
    content = {"meta": about, "state_dict": dict(state.usable), "optimizer": state.optimizer, "training": extra}
    extra["digest"] = digest(content)
    rest: dict[str, Any] = {"optimizer": _interned(state.optimizer), "training": extra}
    return write_checkpoint(path, state.usable, about, rest)


def _interned(value: Any) -> Any:
    """Nested dicts with equal keys made one object: pickle writes those once, so that equal states give equal files."""
    if isinstance(value, Mapping):
        return {sys.intern(key) if isinstance(key, str) else key: _interned(item) for key, item in value.items()}
    return [_interned(item) for item in value] if isinstance(value, list) else value


def _moments(optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        f"optimizer.{index}.{name}": value
        for index, moments in optimizer["state"].items()
        for name, value in moments.items()
        if isinstance(value, Tensor)
    }


def load_state(path: Path) -> TrainState:
    """Reads a checkpoint with an optimiser in it, this program's or one in the published format.

    Raises:
        ResourceError: it does not exist or may not be read.
        IntegrityError: damaged, unsafe, or without what a training needs to go on.
        NonFiniteError: a weight is NaN or infinite.
    """
    read = read_checkpoint(path)
    optimizer, extra, meta = read.rest.get("optimizer"), read.rest.get("training"), read.meta
    iteration = meta.get("iter")
    if not isinstance(optimizer, Mapping) or not {"state", "param_groups"} <= set(optimizer):
        raise _unfit(path, "it holds no optimiser", "To start anew from its weights, use --from FILE.")
    if not isinstance(iteration, int) or iteration < 0:
        raise _unfit(path, "it does not say how many steps were done", "To start anew from its weights, use --from.")
    if extra is None:
        return TrainState(iteration, read.state, dict(optimizer), exact=False)
    try:
        claimed = extra.pop("digest")
        content = {"meta": meta, "state_dict": read.state, "optimizer": optimizer, "training": extra}
        if claimed != digest(content):
            raise _unfit(path, "its content does not fit its digest: it is damaged", "")
        if extra["version"] != VERSION:
            raise _unfit(path, f"its version is {str(extra['version'])[:20]}, this program writes {VERSION}", "")
        return TrainState(
            iteration=iteration,
            weights=extra.get("weights", read.state),
            optimizer=dict(optimizer),
            average=read.state if "weights" in extra else None,
            **{name: extra[name] for name in _SAVED},
            best=Best(*extra["best"]) if extra["best"] else None,
            config=str(meta.get("config", "")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _unfit(path, f"its entry 'training' is not this program's ({type(error).__name__})", "") from error


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], path: Path) -> None:
    """Gives an optimiser of one parameter group its saved moments; decay and betas stay the configuration's.

    Raises:
        IntegrityError: they are those of other parameters.
    """
    own, groups, state = optimizer.state_dict()["param_groups"], saved["param_groups"], saved["state"]
    if len(groups) != 1 or list(groups[0]["params"]) != own[0]["params"]:
        count = sum(len(group["params"]) for group in groups)
        why = f"its optimiser has {count} parameters in {len(groups)} groups, wanted {len(own[0]['params'])} in 1"
        raise _unfit(path, why, "Check that the model, --freeze-backbone and the file belong together.")
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        moments = state.get(index, {})
        if any(moments[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq") if name in moments):
            raise _unfit(path, f"the moments of parameter {index} are not {tuple(parameter.shape)}", "")
    optimizer.load_state_dict({"state": dict(state), "param_groups": [{**own[0], "lr": groups[0].get("lr", 0.0)}]})
    for parameter, moments in optimizer.state.items():  # laid out in memory as an unbroken run has them: the same bits
        for name, value in moments.items():
            if value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _unfit(path: Path, why: str, hint: str) -> IntegrityError:
    return IntegrityError("the training cannot go on from this checkpoint", where=path, why=why, hint=hint)


@dataclass(frozen=True)
class CheckpointStore:
    """The folder of a run's checkpoints."""

    folder: Path  # where they are
    keep: int = 0  # numbered ones that stay, the newest; 0: all

    @property
    def last(self) -> Path:
        """The newest state."""
        return self.folder / LAST

    @property
    def best(self) -> Path:
        """The state with the best evaluation."""
        return self.folder / BEST

    def numbered(self) -> list[Path]:
        """The states saved every so many steps, oldest first."""
        return sorted(self.folder.glob("iter_" + "[0-9]" * 9 + ".pth"))

    def put(self, state: TrainState, meta: Mapping[str, Any], *, number: bool, again: bool = False) -> None:
        """Makes `state` the newest one; the former newest stays as `previous.pth`.

        Args:
            state, meta: as for `save_state`.
            number: keep it under its number, too.
            again: the newest one is of the same step, saved before its evaluation, and is replaced.

        Raises:
            NonFiniteError, ResourceError: as `save_state`; what was there before stays.
        """
        fresh = save_state(self.folder / NEXT, state, meta)
        if self.last.exists() and not again:
            self._name(self.last, PREVIOUS)
        with local_write_errors(self.last):
            fresh.replace(self.last)
            sync_folder(self.folder)
        self.name_newest(state, number=number)

    def name_newest(self, state: TrainState, *, number: bool) -> None:
        """Gives `last.pth`, which holds `state`, its other names; a kill may have come between."""
        if state.best is not None and state.best.iteration == state.iteration and state.validated:
            self._name(self.last, BEST)
        if number:
            self._name(self.last, f"iter_{state.iteration:09d}.pth")
        surplus = self.numbered()[: -self.keep] if self.keep else []
        for path in surplus:
            path.unlink(missing_ok=True)

    def _name(self, path: Path, name: str) -> None:
        """Makes `name` another name of the file `path`, or a copy where the file system has no links."""
        target, beside = self.folder / name, self.folder / f".{name}.link"
        if target.exists() and target.samefile(path):
            return
        with local_write_errors(target):
            beside.unlink(missing_ok=True)
            try:
                os.link(path, beside)
            except OSError:  # no hard links here (FAT, some network file systems)
                with path.open("rb") as source:
                    atomic_write(target, lambda file: shutil.copyfileobj(source, file, 1 << 22))
                return
            beside.replace(target)
            sync_folder(self.folder)

    def newest(self, warn: Callable[[str], object]) -> TrainState | None:
        """The newest intact state, which then is `last.pth`; None where there is none yet.

        Args:
            warn: called with a line for each damaged one that is skipped.

        Raises:
            IntegrityError: there are states, but every one is damaged.
        """
        candidates = [self.last, self.folder / PREVIOUS, *reversed(self.numbered()), self.best]
        present = [path for path in candidates if path.exists()]
        for path in present:
            try:
                state = load_state(path)
                self._name(path, LAST)  # or the next save would make the damaged one the previous
                return state
            except (IntegrityError, NonFiniteError) as error:
                warn(f"Skipped a damaged checkpoint: {error}")
        if present:
            raise IntegrityError(
                "no checkpoint of the run is intact",
                where=self.folder,
                why=f"{len(present)} were tried",
                hint="Start anew in another folder with --out.",
            )
        return None

    def clear(self) -> None:
        """Removes what a kill left half done; states stay."""
        for path in (self.folder / NEXT, *self.folder.glob(".*.link"), *self.folder.glob(".*.part")):
            with suppress(FileNotFoundError):
                path.unlink()


def require_same_run(differences: list[str], force: bool, where: Path) -> None:
    """Raises ConfigError where a run would go on with other settings, unless that is wanted."""
    if differences and not force:
        raise ConfigError(
            "the run was started with other settings",
            where=where,
            faults=differences,
            why=f"{len(differences)} setting{'s' * (len(differences) != 1)} changed",
            hint="Use the same settings, another --out, or --force to go on with the new ones.",
        )


def require_no_run(store: CheckpointStore, what: str = "there is a training in this folder already") -> None:
    """Raises ConfigError where a run would overwrite another one's states."""
    if any(store.folder.glob("*.pth")):
        raise ConfigError(what, where=store.folder.parent, hint="Go on with it with --resume, or choose another --out.")
