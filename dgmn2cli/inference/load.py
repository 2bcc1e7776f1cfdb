"""From a name to a network: the zoo entry or configuration behind it, its weights, its device, its classes."""

from __future__ import annotations

import colorsys
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dgmn2cli.checkpoint.unwrap import class_names
from dgmn2cli.checkpoint.weights import Checkpoint, load_weights, read_checkpoint
from dgmn2cli.config import Config, load_config
from dgmn2cli.errors import ConfigError, ResourceError, printable
from dgmn2cli.inference.build import build_segmentor
from dgmn2cli.inference.plan import require_room
from dgmn2cli.inference.prediction import CITYSCAPES, ClassList
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.model.attention import use_backend
from dgmn2cli.model.fused.network import InferenceForm
from dgmn2cli.model.segmentor import Segmentor
from dgmn2cli.model.shapes import shapes_only
from dgmn2cli.ops import resolve as resolve_backend
from dgmn2cli.runtime import describe_device, require_compilable, resolve_device, resolve_dtype
from dgmn2cli.zoo import Zoo, ZooEntry, cache_dir, load_zoo, locate

LOGGER = logging.getLogger("dgmn2cli")
MAX_CLASSES = 255  # class ids are bytes, and 255 marks ignored pixels


@dataclass(frozen=True)
class Recipe:
    """What a model name stands for.

    Attributes:
        config: the configuration, overrides applied.
        entry: the zoo entry, None for a configuration file of the user's.
    """

    config: Config
    entry: ZooEntry | None


def resolve(name: str, overrides: Sequence[str] = (), zoo: Zoo | None = None) -> Recipe:
    """The recipe behind a zoo key, a published configuration's name, or the path of a configuration file.

    Args:
        name: what the user typed.
        overrides: settings such as `optim.lr=5e-5`.
        zoo: the manifest; the published one if None.

    Raises:
        ConfigError: no such model, or the configuration is wrong.
    """
    if _is_path(name):
        return Recipe(load_config(Path(name), overrides), None)
    entry = (zoo or load_zoo()).find(name)
    return Recipe(load_config(entry.config, overrides), entry)


def _is_path(name: str) -> bool:
    """A name with a folder in it, or of a file that is here; `fpn_..._cityscapes.py` alone is a published name."""
    plausible = name.endswith((".toml", ".py")) and name.isprintable() and len(name) < 4096
    return plausible and ("/" in name or os.path.isfile(name))


def build_model(name: str = "setr_pup-tiny", num_classes: int | None = None) -> nn.Module:
    """A DGMN2 segmentation network with fresh weights, in training mode.

    Its `forward(images)` takes normalised RGB `(B, 3, H, W)` float and gives logits `(B, num_classes, H, W)`; its
    state-dict keys are the published ones.

    Args:
        name: zoo key (`setr_pup-tiny`), published configuration name, or configuration file.
        num_classes: number of classes, 1 to 255; the configuration's if None, which is 19 for every published model.

    Raises:
        ConfigError: no such model, or an impossible number of classes.
    """
    return build(resolve(name), num_classes)


def build(recipe: Recipe, num_classes: int | None = None) -> Segmentor:
    """The recipe's network with fresh weights; `num_classes` replaces the configuration's."""
    config = recipe.config.model
    if num_classes is not None:
        if not 1 <= num_classes <= MAX_CLASSES:
            raise ConfigError("impossible number of classes", why=f"{num_classes}, wanted 1 to {MAX_CLASSES}")
        config = replace(config, num_classes=num_classes)
    return build_segmentor(config)


def build_with_weights(
    recipe: Recipe, checkpoint: str | Path, sha256: str | None = None, *, ema: bool = False
) -> tuple[Segmentor, Checkpoint]:
    """The recipe's network with every tensor loaded from `checkpoint`, in evaluation mode.

    Args:
        recipe: which network.
        checkpoint: a `.pth` or `.safetensors` file.
        sha256: the hash it must have, where one is known.
        ema: take the averaged copy of the weights that the file holds.

    Raises:
        ResourceError, IntegrityError, NonFiniteError: the file is missing, damaged, unsafe, or another model's.
    """
    read = read_checkpoint(checkpoint, sha256=sha256, ema=ema, inference=True)
    for note in read.notes:
        LOGGER.warning("%s: %s", printable(read.path), note)
    model = build(recipe)
    load_weights(model, read)
    return model.eval(), read


def weights_on_disk(recipe: Recipe, cache: Path | None = None) -> tuple[Path, str]:
    """The recipe's published weights in the cache: path and the hash the file must have.

    Raises:
        ResourceError: they are not there; says how to get them.
        ConfigError: the recipe is a configuration file, which has no published weights.
    """
    entry = recipe.entry
    if entry is None:
        raise ConfigError(
            "no weights are published for a configuration file", where=recipe.config.name, hint="Add --checkpoint FILE."
        )
    found = locate(entry, cache_dir(cache))
    if found is None:
        raise ResourceError(
            "the weights are not on disk",
            where=entry.key,
            hint=f"Get them with `dgmn2 download {entry.key}`, or name a file with --checkpoint FILE.",
        )
    return found.path, found.sha256


def load(
    name: str = "setr_pup-tiny",
    checkpoint: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
) -> Segmenter:
    """A segmenter for a published model or a configuration file.

    Args:
        name: zoo key, published configuration name, or configuration file.
        checkpoint: the weights; the zoo's file in the cache if None.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        backend: `auto`, `native`, `triton` or `reference`; a named one never falls back.

    Raises:
        ConfigError: an unknown name.
        ResourceError: the weights are not on disk, or device or backend cannot run.
        IntegrityError, NonFiniteError: the weights are damaged, unsafe or another model's.
    """
    return assemble(resolve(name), checkpoint, device=device, dtype=dtype, backend=backend)


def assemble(
    recipe: Recipe,
    checkpoint: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
    exact_algebra: bool = True,
    compiled: bool = False,
    cache: Path | None = None,
    max_memory: int | None = None,
    ema: bool = False,
) -> Segmenter:
    """A recipe's network with its weights, on its device, rewritten for inference.

    Args:
        recipe: which network.
        checkpoint: the weights; the published ones in the cache if None.
        device, dtype, backend: as for `load`.
        exact_algebra: rewrite the network into its faster equal (`model.inference_form`); else run the published
            order of operations.
        compiled: run the published order through `torch.compile`; on NVIDIA GPUs only.
        cache: the cache folder; the default one if None.
        max_memory: bytes that must not be exceeded, see `Settings`.
        ema: take the averaged copy of the weights that the checkpoint holds.

    Raises:
        ConfigError: `compiled` on another device than an NVIDIA GPU.
        ResourceError: the weights are not on disk, device or backend cannot run, or the memory limit is too small.
        IntegrityError, NonFiniteError: the weights are damaged, unsafe or another model's.
    """
    target, number = resolve_device(device), resolve_dtype(dtype)
    used = resolve_backend(backend, target, number)
    if compiled:
        require_compilable(target)
    path, sha256 = weights_on_disk(recipe, cache) if checkpoint is None else (Path(checkpoint), None)
    if max_memory is not None:
        require_room(max_memory, target, _loading_bytes(recipe, path, target), "loading the model")
    model, read = build_with_weights(recipe, path, sha256, ema=ema)
    use_backend(model, used)
    model.to(target, number).requires_grad_(requires_grad=False)
    fused = exact_algebra and not compiled
    network: nn.Module = InferenceForm(model) if fused else model
    if compiled:
        network.compile()
    info = RunInfo(
        model=recipe.entry.key if recipe.entry else recipe.config.name,
        checkpoint=str(read.path),
        sha256=read.sha256,
        device=str(target),
        device_name=describe_device(target),
        dtype=dtype,
        backend=used,
        form="fused" if fused else "published",
    )
    return Segmenter(network, class_list(model.num_classes, read.meta), info, recipe.config.inference)


def _loading_bytes(recipe: Recipe, path: Path, device: torch.device) -> int:
    """Bytes that loading takes at most: the network, its weights as they lie in the file, its rewritten form."""
    with shapes_only():
        network = sum(value.nbytes for value in build(recipe).state_dict().values())
    if device.type != "cpu":
        return 2 * network
    mapped = zipfile.is_zipfile(path)  # of other files all bytes are read, and tensors are made of them
    return 3 * network if mapped else 2 * network + 2 * (path.stat().st_size if path.is_file() else 0)


def class_list(count: int, meta: Mapping[str, Any]) -> ClassList:
    """What `count` classes are called: what the checkpoint says; if nothing, Cityscapes' names for 19, else numbers."""
    names, palette = class_names(meta)
    if names is None and count == len(CITYSCAPES.names):
        return CITYSCAPES
    if names is None or len(names) != count:
        names = tuple(f"class {index}" for index in range(count))
    cityscapes = names == CITYSCAPES.names
    return ClassList(names, _palette(palette, count, cityscapes), cityscapes)


def _palette(palette: object, count: int, cityscapes: bool) -> np.ndarray:
    """(count, 3) uint8: the checkpoint's colours where they are usable, else Cityscapes', else spread-out hues."""
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
    hues = [colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.55 + 0.35 * (index % 2), 0.9) for index in range(count)]
    return (np.array(hues) * 255).astype(np.uint8)
