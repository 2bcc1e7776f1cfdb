"""From a name to a network: the zoo entry or configuration behind it, its weights, its device, its classes."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dgmn2cli.checkpoint.recognise import recognise
from dgmn2cli.checkpoint.unwrap import Checkpoint, class_names
from dgmn2cli.checkpoint.weights import load_weights, read_checkpoint, verify_checkpoint
from dgmn2cli.config import Config, DataConfig, InferenceConfig, ModelConfig, is_path, load_config
from dgmn2cli.data.layout import chosen_palette
from dgmn2cli.errors import ConfigError, IntegrityError, printable
from dgmn2cli.inference.cuda_graphs import RecordedNetwork
from dgmn2cli.inference.dtype import with_fitting_dtype
from dgmn2cli.inference.graph import MAX_CLASSES
from dgmn2cli.inference.plan import require_room
from dgmn2cli.inference.prediction import CITYSCAPES, ClassList
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.inference.settings import LoadOptions
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.backbone import Classifier
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import shapes_only, unfilled
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.ops import resolve as resolve_backend
from dgmn2cli.runtime import describe_device, require_compilable, resolve_device, resolve_dtype
from dgmn2cli.zoo import AnyEntry, Zoo, ZooEntry, cache_dir, find_cache, load_zoo, locate, offline_wanted

LOGGER = logging.getLogger("dgmn2cli")


@dataclass(frozen=True)
class Recipe:
    """What a model name stands for; called, it makes the network, also in another process."""

    config: Config  # the configuration, overrides applied
    entry: ZooEntry | None  # the zoo entry, None for a configuration file of the user's
    options: LoadOptions = field(default_factory=LoadOptions)  # how it becomes a network

    @property
    def name(self) -> str:
        """Zoo key or configuration name."""
        return self.entry.key if self.entry else self.config.name

    @property
    def inference(self) -> InferenceConfig:
        """The test procedure."""
        return self.config.inference

    @property
    def data(self) -> DataConfig:
        """What is said of the data: by a configuration file of the user's; by a published one nothing that counts."""
        return self.config.data if self.entry is None else DataConfig()

    def __call__(self, *, observer: Observer = Silent(), **changes: Any) -> Segmenter:
        """The network with its weights, on its device, rewritten for inference.

        Args:
            changes: values of `LoadOptions` that replace the recipe's.

        Raises:
            ConfigError: `compiled` on another device than an NVIDIA GPU.
            NetworkError, ResourceError, IntegrityError, NonFiniteError: as `load`; or the memory limit is too small.
        """
        changed = replace(self, options=replace(self.options, **changes))
        if changed.options.dtype == "auto":
            return with_fitting_dtype(partial(changed, observer=observer), changed.options.device, observer)
        return _assemble(changed, observer)


def resolve(
    name: str | Path,
    overrides: Sequence[str] = (),
    zoo: Zoo | None = None,
    values: Mapping[str, object] | None = None,
) -> Recipe:
    """The recipe behind a zoo key, a published configuration's name, or the path of a configuration file.

    Args:
        overrides: settings such as `optim.lr=5e-5`.
        zoo: the manifest; the published one if None.
        values: settings by dotted key, such as `{"optim.lr": 5e-5}`; overrides come after them.

    Raises:
        ConfigError: no such model, or the configuration is wrong.
    """
    name = str(name)
    if is_path(name):
        return Recipe(load_config(Path(name), overrides, values), None)
    entry = (zoo or load_zoo()).find(name)
    return Recipe(load_config(entry.config, overrides, values), entry)


def build_model(name: str | Path = "setr_pup-tiny", num_classes: int | None = None) -> nn.Module:
    """A DGMN2 segmentation network with fresh weights, in training mode.

    Its `forward(images)` takes normalised RGB `(B, 3, H, W)` float and gives logits `(B, num_classes, H, W)`; its
    state-dict keys are the published ones.

    Args:
        name: zoo key (`setr_pup-tiny`), published configuration name, or configuration file.
        num_classes: number of classes, 1 to 255; the configuration's if None, which is 19 for every published model.

    Raises:
        ConfigError: no such model, or an impossible number of classes.
    """
    config = resolve(name).config.model
    if num_classes is not None:
        if not 1 <= num_classes <= MAX_CLASSES:
            raise ConfigError("impossible number of classes", why=f"{num_classes}, wanted 1 to {MAX_CLASSES}")
        config = replace(config, num_classes=num_classes)
    return build_segmentor(config)


def build_segmentor(config: ModelConfig) -> Segmentor:
    """The network of a configuration, with fresh weights, in training mode."""
    return Segmentor(config.backbone, config.head, config.num_classes, config.drop_path)


@dataclass(frozen=True)
class Weights:
    """A file of weights."""

    path: Path  # the file
    sha256: str | None  # the hash it must have, None if none is known; whoever reads it compares
    read: Checkpoint | None = None  # its content, where it was read to check the download


def ensure_weights(
    entry: AnyEntry, cache: Path | None = None, *, offline: bool = False, observer: Observer | None = None
) -> Weights:
    """The entry's published weights, downloaded and checked if they are not in the cache.

    Args:
        cache: the cache folder; the default one if None.
        offline: do not touch the network; `DGMN2_OFFLINE` says the same.

    Raises:
        NetworkError: they are not here and the network is off, or no source gives them.
        IntegrityError, NonFiniteError: what the sources give is not the entry's model.
        ResourceError: the cache cannot be read or written.
    """
    folder, observer, offline = cache_dir(cache), observer or Silent(), offline or offline_wanted()
    if found := locate(entry, folder):
        return Weights(found.path, found.sha256)
    from dgmn2cli.zoo.fetch import fetch  # requests takes a tenth of a second to import

    if not offline:
        names = {"gdrive": "Google Drive", "file": "a file"}  # of the others, the host
        places = [names.get(source.type) or source.location.split("/")[2] for source in entry.sources]
        observer.note(f"The weights of {entry.key} are not on disk; fetching them from {', else '.join(places)}.")
    read: dict[str, Checkpoint] = {}

    def verify(path: Path) -> str:
        checked = verify_weights(entry, path)
        read.clear()
        read[checked.sha256] = checked
        return checked.sha256

    fetched = fetch(entry, cache=folder, verify=verify, offline=offline, observer=observer)
    checked = read.get(fetched.sha256)
    return Weights(fetched.path, fetched.sha256, replace(checked, path=fetched.path) if checked else None)


def verify_weights(entry: AnyEntry, path: Path) -> Checkpoint:
    """The file at `path`, if it is the entry's model: safe, finite, every key, shape and type of its network.

    Raises:
        IntegrityError, NonFiniteError: it is not that model.
    """
    with shapes_only():
        if isinstance(entry, ZooEntry):
            network: nn.Module = build_segmentor(load_config(entry.config).model)
        else:
            network = Classifier(entry.key.rsplit("_", 1)[-1])
    return verify_checkpoint(path, network)


def published(recipe: Recipe) -> ZooEntry:
    """The recipe's zoo entry.

    Raises:
        ConfigError: the recipe is a configuration file, which has no published weights.
    """
    if recipe.entry is None:
        hint = "Add --checkpoint FILE."
        raise ConfigError("no weights are published for a configuration file", where=recipe.config.name, hint=hint)
    return recipe.entry


def load(
    name: str | Path = "setr_pup-tiny",
    checkpoint: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
    *,
    offline: bool = False,
    observer: Observer | None = None,
    cache: str | Path | None = None,
) -> Segmenter:
    """A segmenter for a published model or a configuration file.

    Published weights that are not in the cache are downloaded and checked, as the commands do it.

    Args:
        name: zoo key, published configuration name, or configuration file.
        checkpoint: the weights; the published ones if None.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for bfloat16 where machine and weights allow it.
        backend: `auto`, `native`, `triton` or `reference`; a named one never falls back.
        offline: do not touch the network; `DGMN2_OFFLINE` says the same.
        observer: told of the download: notes, and its bytes.
        cache: the cache folder; `DGMN2_CACHE`, else the user's, if None.

    Raises:
        ConfigError: an unknown name.
        NetworkError: the weights are not on disk, and the network is off or does not give them.
        ResourceError: device or backend cannot run, or the cache cannot be written.
        IntegrityError, NonFiniteError: the weights are damaged, unsafe or another model's.
    """
    options = LoadOptions(checkpoint, device, dtype, backend, cache=find_cache(cache), offline=offline)
    return replace(resolve(name), options=options)(observer=observer or Silent())


def _assemble(recipe: Recipe, observer: Observer) -> Segmenter:
    options = recipe.options
    target, number = resolve_device(options.device), resolve_dtype(options.dtype)
    used = resolve_backend(options.backend, target, number)
    if options.compiled:
        require_compilable(target)
    if options.checkpoint is None:
        weights = ensure_weights(published(recipe), options.cache, offline=options.offline, observer=observer)
    else:
        weights = Weights(Path(options.checkpoint), None)
    if options.max_memory is not None:
        require_room(options.max_memory, target, _loading_bytes(recipe, weights.path, target), "loading the model")
    read = (None if options.ema else weights.read) or read_checkpoint(
        weights.path, sha256=weights.sha256, ema=options.ema, inference=True
    )
    for note in read.notes:
        LOGGER.warning("%s: %s", printable(read.path), note)
    model = unfilled(lambda: build_segmentor(recipe.config.model))
    try:
        load_weights(model, read)
    except IntegrityError as error:
        found = recognise(read.state)
        if found.key:
            error.hint = f"It holds {found.in_words()}; name that model, or the configuration of its training."
        raise
    model.eval()
    use_backend(model, used)
    model.to(target, number).requires_grad_(requires_grad=False)
    fused = options.exact_algebra and not options.compiled
    network: nn.Module = InferenceForm(model) if fused else model
    if options.compiled:
        network.compile()
    elif options.cuda_graphs and target.type == "cuda" and options.max_memory is None:
        network = RecordedNetwork(network)
    info = RunInfo(
        model=recipe.name,
        checkpoint=str(read.path),
        sha256=read.sha256,
        device=str(target),
        device_name=describe_device(target),
        dtype=options.dtype,
        backend=used,
        form="fused" if fused else "published",
        weights=read.wrapper,
        licence=recipe.entry.licence if recipe.entry and options.checkpoint is None else None,
    )
    again = replace(recipe, options=LoadOptions(read.path, ema=options.ema))
    classes = class_list(model.num_classes, read.meta)
    return Segmenter(network, classes, info, recipe.config.inference, again=again)


def _loading_bytes(recipe: Recipe, path: Path, device: torch.device) -> int:
    """Bytes that loading takes at most: the network, its weights as they lie in the file, its rewritten form."""
    with shapes_only():
        network = sum(value.nbytes for value in build_segmentor(recipe.config.model).state_dict().values())
    if device.type != "cpu":
        return 2 * network
    mapped = zipfile.is_zipfile(path)  # of other files all bytes are read, and tensors are made of them
    return 3 * network if mapped else 2 * network + 2 * (path.stat().st_size if path.is_file() else 0)


def class_list(count: int, meta: Mapping[str, Any]) -> ClassList:
    """What `count` classes are called: what the checkpoint says; if nothing, Cityscapes' names for 19, else numbers."""
    names, palette = class_names(meta)
    if names is None and count == len(CITYSCAPES.names):
        return replace(CITYSCAPES, stated=False)
    stated = names is not None and len(names) == count
    if names is None or len(names) != count:
        names = tuple(f"class {index}" for index in range(count))
    cityscapes = names == CITYSCAPES.names
    return ClassList(names, choose_palette(palette, count, cityscapes), cityscapes, stated)


def choose_palette(palette: object, count: int, cityscapes: bool) -> np.ndarray:
    """(count, 3) uint8: the given colours where they are usable, else Cityscapes', else `chosen_palette`."""
    try:
        colors = np.asarray(palette)
    except (ValueError, TypeError, OverflowError):
        colors = np.empty(0)
    if (
        colors.shape == (count, 3)
        and np.issubdtype(colors.dtype, np.integer)
        and 0 <= colors.min() <= colors.max() < 256
    ):
        return colors.astype(np.uint8)
    if cityscapes:
        return CITYSCAPES.palette
    return chosen_palette(count)
