"""Predictions on disk: the folder that an evaluation keeps, and the files that belong to a data set's images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID, LABEL_IDS
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.images import read_label, write_png
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import absence


@dataclass(frozen=True, eq=False)
class PredictionFolder:
    """Where predictions are kept: `trainIds/NAME_trainIds.png`, and for Cityscapes `labelIds/NAME_labelIds.png`.

    Each subfolder holds one file per image, as the official tool wants it. Files appear whole or not at all.
    """

    folder: Path
    palette: np.ndarray
    cityscapes: bool

    @classmethod
    def of(cls, folder: str | Path, data: SegmentationSet) -> PredictionFolder:
        """The folder for `data`.

        Raises:
            ConfigError: a prediction would overwrite a file of the data set, or two images have one name.
        """
        made = cls(Path(folder), data.palette, data.kind == "cityscapes")
        inputs = {os.path.realpath(p) for pair in data.pairs for p in (pair.image, pair.label) if p is not None}
        targets = [os.path.realpath(target) for pair in data.pairs for target in made.targets(pair.name)]
        lost = sorted({str(target) for target in targets if target in inputs})
        if lost:
            raise ConfigError("a prediction would overwrite a file of the data set", where=folder, faults=lost)
        if len(set(targets)) < len(targets):
            raise ConfigError("predictions of several images would get one name", where=data.root)
        return made

    @property
    def label_ids(self) -> Path:
        """The folder of the labelIds files, which the official tool and the test server read."""
        return self.folder / "labelIds"

    def targets(self, name: str) -> list[Path]:
        """The files of the image `name`."""
        trained = self.folder / "trainIds" / f"{name}_trainIds.png"
        return [trained, self.label_ids / f"{name}_labelIds.png"] if self.cityscapes else [trained]

    def write(self, name: str, ids: np.ndarray) -> None:
        """Keeps `ids` (H, W) uint8 class ids of the image `name`."""
        targets = self.targets(name)
        write_png(targets[0], ids, self.palette)
        if self.cityscapes:
            write_png(targets[1], LABEL_ID_OF_TRAIN_ID[ids])


def find_predictions(folder: Path, data: SegmentationSet) -> list[Path]:
    """The prediction of every image of `data`: what `eval --save-preds` or `infer --save ids` left in `folder`.

    Looked for are, in `folder` or its subfolders trainIds and labelIds, `NAME_trainIds.png`, `NAME_ids.png`, for
    Cityscapes `NAME_labelIds.png`, and `NAME.png`, where NAME is the image's or that of its file.

    Raises:
        DataError: no such folder, or images without a file; all are named.
    """
    if not os.path.isdir(folder):
        hint = "Name a folder that `dgmn2 eval --save-preds DIR` or `dgmn2 infer -o DIR --save ids` made."
        raise DataError("cannot read the predictions", where=folder, why=absence(folder, "folder"), hint=hint)
    endings = ["_trainIds.png", "_ids.png", *["_labelIds.png"] * (data.kind == "cityscapes"), ".png"]
    places = [folder / "trainIds", folder, folder / "labelIds"]
    found, faults = [], []
    for pair in data.pairs:
        names = dict.fromkeys((pair.name, pair.image.stem))
        files = (place / f"{name}{ending}" for place in places for ending in endings for name in names)
        file = next((file for file in files if file.is_file()), None)
        found += [file] if file is not None else []
        faults += (
            [] if file is not None else [f"{pair.name}: neither {pair.name}{endings[0]} nor {pair.name}{endings[1]}"]
        )
    if faults:
        why = f"{len(faults)} of {len(data)} images have no file"
        raise DataError("the predictions are not complete", where=folder, why=why, faults=faults, hint="Add them.")
    return found


def read_prediction(path: Path, data: SegmentationSet, max_pixels: int) -> np.ndarray:
    """(H, W) uint8 class ids of `data`; 255 for what is no class.

    Raises:
        DataError: it cannot be read, or its name says labelIds and it holds others.
    """
    stored = read_label(path, max_pixels)
    if path.name.endswith("_labelIds.png"):
        return LABEL_IDS.apply(stored, path)
    ids: np.ndarray = np.where(stored < len(data.classes), stored, 255).astype(np.uint8)
    return ids
