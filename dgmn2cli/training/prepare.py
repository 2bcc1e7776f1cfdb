"""Everything that is resolved and checked before a training's network is built; nothing is written yet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from dgmn2cli.config import Config, load_config, load_config_text
from dgmn2cli.data.catalog import open_configured, split_name
from dgmn2cli.data.check import check_dataset, require_sound
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.distributed.group import Group
from dgmn2cli.errors import ConfigError
from dgmn2cli.files import check_folder
from dgmn2cli.inference.load import build_segmentor
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.observer import Observer
from dgmn2cli.ops import resolve as resolve_backend
from dgmn2cli.runtime import resolve_dtype
from dgmn2cli.training.folder import differences, lock_folder
from dgmn2cli.training.initial_source import find_initial_weights
from dgmn2cli.training.initial_weights import class_weights_from
from dgmn2cli.training.logs import require_logger
from dgmn2cli.training.request import RESUME_NEWEST, TrainRequest
from dgmn2cli.training.state import CheckpointStore, TrainState, load_state, require_no_run, require_same_run
from dgmn2cli.zoo.cache import checks_dir

_CHANGED = {
    "data": "the names or sizes of its files have changed",
    "labels": "the classes' names or what stored ids become has changed, in dataset.toml or in the program",
}
STRIDE = 32  # of the backbone's last stage: a larger crop has more than one value per channel everywhere


@dataclass(frozen=True, eq=False)
class Training:
    """A training that can begin."""

    config: Config  # resolved: number of classes and class weights are those in force
    # train, val: the data, checked
    train: SegmentationSet
    val: SegmentationSet
    # what determines the numbers beside the configuration: processes, device, threads, backend, the version of torch,
    # the CPU's instructions, the data's files
    environment: Mapping[str, int | str]
    notes: tuple[str, ...]  # what the user should know
    state: TrainState | None = None  # where it goes on from; None: from the beginning
    source: Path = field(default_factory=Path)  # the checkpoint of that state
    own: bool = True  # the state is of the run in this folder


def open_run(request: TrainRequest, group: Group, observer: Observer, stack: ExitStack) -> Training:
    """Finds where the run stands, checks everything, and takes the right to write to the run folder.

    The folder is created only for a training that can begin.

    Args:
        observer: told of damaged checkpoints and the progress of checks.
        stack: keeps the folder's lock.

    Raises:
        ConfigError: there is nothing to resume, or the settings are others than those of the run.
        Dgmn2Error: as `prepare`.
    """
    store, there = request.folder.checkpoints(request.config.train.keep), os.path.lexists(request.out)
    if there:
        if os.path.isdir(request.out):
            request.folder.require_ours()
        check_folder(Path(request.out))
        stack.enter_context(lock_folder(request.out))
    state, source, notes = _find_state(request, store, observer)
    request = _with_batch_of_run(request, state)
    own = state is None or _within(source, store)
    if not own:
        require_no_run(store, "another run's checkpoint, and there is a training in this folder already")
    training = prepare(request, group, observer, state)
    if request.resume:
        notes += _compare(request, training, state, own)
    if state is not None:
        iters, every = training.config.train.iters, training.config.train.save_every
        if state.iteration > iters:
            why = f"{state.iteration} steps are done, train.iters is {iters}"
            raise ConfigError("nothing is left to train", where=request.out, why=why, hint="Set more --max-iters.")
        if source == store.last:
            store.name_newest(state, number=bool(every) and state.iteration % every == 0)
        notes.append(f"Resumed after {state.iteration} steps.")
        if not state.exact:
            notes.append("The checkpoint is another program's: weights and optimiser go on, random numbers start here.")
        if not own:  # its evaluations and its log are the other run's
            state = replace(state, best=None, log_bytes=0, validated=state.iteration < iters)
    if not there:
        stack.enter_context(lock_folder(request.out))
        require_no_run(store)  # another one may have begun meanwhile
    return replace(training, notes=(*notes, *training.notes), state=state, source=source, own=own)


def _with_batch_of_run(request: TrainRequest, state: TrainState | None) -> TrainRequest:
    """A run that goes on keeps the batch size that was measured when it began."""
    if not request.resume or request.config.train.batch_size:
        return request
    before = load_config(request.folder.config) if request.folder.config.exists() else None
    if before is None and state is not None and state.config:
        before = _settings_of(state)
    size = before.train.batch_size if before else 0
    config = request.config
    return replace(request, config=replace(config, train=replace(config.train, batch_size=size)))


def _find_state(
    request: TrainRequest, store: CheckpointStore, observer: Observer
) -> tuple[TrainState | None, Path, list[str]]:
    """The state to go on from, its file, and what the user should know."""
    if not request.resume:
        require_no_run(store)
        return None, store.last, []
    if request.resume != RESUME_NEWEST:
        source = Path(request.resume)
        named = load_state(source)
        if not _within(source, store):
            return named, source, []
        newest = store.newest(observer.note)
        if newest is None or newest.iteration < named.iteration:
            return named, source, []
        if newest.iteration > named.iteration:
            raise ConfigError(
                "the run has gone on since this checkpoint",
                where=source,
                why=f"it is of step {named.iteration}, the newest is of step {newest.iteration}",
                hint="Go on from it in another folder with --out, or from the newest with --resume alone.",
            )
        return newest, store.last, []
    store.clear()
    state = store.newest(observer.note)
    none = [] if state else ["There is no checkpoint yet: the run starts from the beginning."]
    return state, store.last, none


def _within(source: Path, store: CheckpointStore) -> bool:
    """Whether a checkpoint is one of the run's own."""
    return os.path.dirname(os.path.realpath(source)) == os.path.realpath(store.folder)


def prepare(request: TrainRequest, group: Group, observer: Observer, state: TrainState | None = None) -> Training:
    """Resolves and checks everything that can go wrong before a network is built, cheapest first.

    Args:
        state: what the training goes on from; a new one needs its first weights.

    Raises:
        ConfigError: the configuration does not fit the data set, or class weights or the crop are wrong.
        ResourceError: the first weights, the backend or the logger are not there.
        DataError: the data set has faults; all are named.
    """
    config, notes = request.config, []
    require_logger(config.train.logger)
    if state is None:
        find_initial_weights(config.train.init, config.model.backbone, request.zoo_file, request.cache)
    require_normal_batches(config, group.world)
    train, val = open_splits(config)
    if config.model.num_classes != len(train.classes):
        notes.append(_refuse_or_adapt(request, train))
        config = replace(config, model=replace(config.model, num_classes=len(train.classes)))
    workers, memory = max(1, config.data.workers), checks_dir(request.cache)
    check = partial(check_dataset, workers=workers, observer=observer, memory=memory)
    reports = [require_sound(check(data)) for data in (train, val)]
    for report in reports:
        notes += [f"{report.split}: {note}" for note in report.remarks]
    if config.train.class_weights_from:
        counted = tuple(entry.weight for entry in reports[0].classes)
        weights = class_weights_from(config.train.class_weights_from, counted, train.classes)
        settings = replace(config.train, class_weights=weights, class_weights_from="")
        config = replace(config, train=settings)
        pairs = (f"{name} {weight:.3g}" for name, weight in zip(train.classes, weights, strict=True))
        notes.append(f"Class weights: {', '.join(pairs)}.")
    environment = _environment(request, group, state, (train, val))
    return Training(config, train, val, environment, tuple(notes))


def build_network(config: Config, backend: str) -> Segmentor:
    """The configuration's network with fresh weights that depend on nothing but the seed."""
    torch.manual_seed(config.train.seed)
    model = build_segmentor(config.model)
    use_backend(model, backend)
    return model


def open_splits(config: Config) -> tuple[SegmentationSet, SegmentationSet]:
    """The splits to train on and to evaluate on.

    Raises:
        ConfigError: class names that are not the data set's, or a wrong description.
        DataError: they cannot be opened, or do not have the same classes.
    """
    settings = config.data
    train, val = (open_configured(settings, split_name(settings, part)) for part in ("train", "val"))
    if train.classes != val.classes:
        raise ConfigError("the splits have other classes", where=train.root, why=f"{train.split} and {val.split}")
    return train, val


def _refuse_or_adapt(request: TrainRequest, data: SegmentationSet) -> str:
    count = len(data.classes)
    if not request.adapt_classes:
        raise ConfigError(
            "the configuration does not fit the data set",
            where=data.root,
            why=f"model.num_classes is {request.config.model.num_classes}, the data set has {count} classes",
            hint=f"Add --set model.num_classes={count}.",
        )
    return f"model.num_classes: {request.config.model.num_classes} -> {count}, the data set's."


def require_normal_batches(config: Config, world: int) -> None:
    """Refuses a crop of which a batch norm sees one value per channel: there is no variance to divide by.

    Raises:
        ConfigError: it is so; names the smallest crop and batch that work.
    """
    train, crop = config.train, config.augment.crop
    together = train.batch_size * (world if train.sync_bn else 1)
    if together != 1 or crop > STRIDE or _normalises(config, crop):
        return
    enough = next(side for side in range(crop + 1, STRIDE + 2) if side > STRIDE or _normalises(config, side))
    raise ConfigError(
        "the crop is too small for a batch of one image",
        where=f"augment.crop is {crop}",
        why="a batch norm would see one value per channel",
        hint=f"Use --crop {enough} or more, or --batch-size 2 or more.",
    )


def _normalises(config: Config, crop: int) -> bool:
    """Whether the network can be trained on one image of `crop` x `crop` pixels; tried without any data."""
    with torch.device("meta"):
        model = build_segmentor(config.model)
    use_backend(model, "reference")
    model.train()
    if config.train.freeze_backbone:
        model.backbone.eval()
    try:
        model.coarse_logits(torch.zeros(1, 3, crop, crop, device="meta"), (crop, crop))
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            return False
        raise
    return True


def _environment(
    request: TrainRequest, group: Group, state: TrainState | None, data: tuple[SegmentationSet, ...]
) -> dict[str, int | str]:
    """What determines the numbers beside the configuration; what nobody has named is as the run had it."""
    saved: Mapping[str, int | str] = state.environment if state else {}
    backend = str(saved.get("backend", "auto")) if request.backend == "auto" else request.backend
    found: dict[str, int | str] = {
        "processes": group.world,
        "device": group.device.type,
        "threads": request.threads or int(saved.get("threads", torch.get_num_threads())),
        "backend": resolve_backend(backend, group.device, resolve_dtype(request.config.train.dtype)),
        "torch": str(torch.__version__),
        "data": data_digest(data),
        "labels": " ".join(part.meaning for part in data),
    }
    if group.device.type == "cpu":
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
    return found


def data_digest(data: tuple[SegmentationSet, ...]) -> str:
    """SHA-256 over the names and sizes of all files of some splits."""
    running = hashlib.sha256()
    for part in data:
        for pair in part.pairs:
            sizes = [os.stat(path).st_size for path in (pair.image, pair.label) if path is not None]
            running.update(f"{part.split}\0{pair.name}\0{sizes}\n".encode(errors="surrogateescape"))
    return running.hexdigest()


def _compare(request: TrainRequest, training: Training, state: TrainState | None, own: bool) -> list[str]:
    """What has changed since the run was started, if that is wanted; else refuses to go on."""
    if own:
        changed = request.folder.differences(training.config)
    else:
        assert state is not None
        changed = differences(_settings_of(state), training.config) if state.config else []
    saved: Mapping[str, int | str] = state.environment if state else {}
    for name, value in training.environment.items():
        if saved.get(name, value) != value:
            changed.append(f"{name}: {_CHANGED.get(name) or f'{saved[name]} -> {value}'}")
    require_same_run(changed, request.force, request.out)
    return [f"Changed: {line}" for line in changed]


def _settings_of(state: TrainState) -> Config:
    """The configuration in a checkpoint."""
    return load_config_text(state.config, "checkpoint.toml")
