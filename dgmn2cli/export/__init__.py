"""A network as the graph of one window, with all that is needed to run it elsewhere.

The room is callable: `dgmn2cli.export(segmenter, "folder")`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgmn2cli.export.folder import ExportReport
    from dgmn2cli.inference.segmenter import Segmenter
    from dgmn2cli.observer import Observer


class _Room(ModuleType):
    def __call__(
        self,
        segmenter: Segmenter,
        folder: str | Path,
        form: str = "onnx",
        *,
        half: bool = False,
        window: int | None = None,
        batch: int | None = None,
        overwrite: bool = False,
        observer: Observer | None = None,
    ) -> ExportReport:
        """Exports a network into a folder of its own, as `dgmn2 export` does.

        Args:
            segmenter: what `dgmn2cli.load` gave.
            folder: absent or empty; or an earlier export, with `overwrite`.
            form: `onnx`, or `pt2` for torch alone.
            half: weights and activations in float16; coordinates of samples, softmax and norms stay float32.
            window: side of the sliding window; the configuration's if None.
            batch: windows that the graph takes at a time; any number if None.
            overwrite: replace an earlier export.
            observer: told of the steps.

        Raises:
            CheckFailed: the graph does not agree with the network; nothing is left.
            ConfigError: the folder is taken, or an impossible option.
            ResourceError: a package is missing, or the folder cannot be written.
        """
        from dgmn2cli.export.folder import ExportOptions, export_folder

        return export_folder(segmenter, folder, ExportOptions(form, half, window, batch, overwrite), observer)


sys.modules[__name__].__class__ = _Room
