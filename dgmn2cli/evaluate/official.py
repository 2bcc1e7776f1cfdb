"""The cross-check by cityscapesScripts: the official tool on the saved predictions, beside our own figures."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID, LABEL_IDS_SUFFIX, LABELS
from dgmn2cli.data.dataset import Pair, SegmentationSet
from dgmn2cli.data.images import read_label, write_png
from dgmn2cli.errors import CheckFailed, ConfigError, DataError, ResourceError
from dgmn2cli.evaluate.counting import Scores
from dgmn2cli.evaluate.report import OfficialScores
from dgmn2cli.folders import temporary_folder

AGREES = 1e-12  # IoU from 0 to 1; the two sum their means in different orders


def require_official(kind: str = "cityscapes") -> None:
    """Makes sure, before anything is computed, that the official tool can be asked.

    Raises:
        ResourceError: cityscapesScripts is not installed.
        ConfigError: the data set is not Cityscapes.
    """
    if kind != "cityscapes":
        raise ConfigError("--official is for Cityscapes", why=f"this is a {kind} data set")
    _tool()


def _tool() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    except ImportError as error:
        hint = "Install it with `pip install 'dgmn2cli[cityscapes]'`, or leave out --official."
        raise ResourceError("cityscapesScripts cannot be used", why=str(error), hint=hint) from error
    except ValueError as error:  # its own check of CITYSCAPES_EXPORT_DIR
        raise ConfigError("cityscapesScripts refuses its settings", why=str(error)) from error


def official_scores(data: SegmentationSet, predictions: Sequence[Path], ours: Scores) -> OfficialScores:
    """Runs the official pixel-level evaluation.

    Args:
        data: Cityscapes images with labels.
        predictions: the labelIds file of each of them.

    Raises:
        DataError: the tool refuses a file.
        ResourceError: cityscapesScripts is not installed.
    """
    with temporary_folder("dgmn2-official") as folder:
        truths, converted = [], 0
        for index, pair in enumerate(data.pairs):
            official = _label_ids_file(pair)
            if official is None:
                official = folder / f"{index:06d}{LABEL_IDS_SUFFIX}"
                write_png(official, LABEL_ID_OF_TRAIN_ID[data.read_label(index)])
                converted += 1
            truths.append(str(official))
        results = _run([str(path) for path in predictions], truths)
    mean, group_mean = float(results["averageScoreClasses"]), float(results["averageScoreCategories"])
    pairs = [(score.iou, results["classScores"][score.name]) for score in ours.classes]
    pairs += [(group.iou, results["categoryScores"][group.name]) for group in ours.categories]
    pairs += [(ours.mean_iou, mean), (ours.mean_category_iou, group_mean)]
    return OfficialScores(
        version=importlib.metadata.version("cityscapesScripts"),
        mean_iou=mean,
        mean_category_iou=group_mean,
        difference=max(_difference(mine, float(theirs)) for mine, theirs in pairs),
        converted_labels=converted,
    )


def _difference(mine: float, theirs: float) -> float:
    if math.isnan(mine) and math.isnan(theirs):
        return 0.0
    return abs(mine - theirs) if math.isfinite(mine) and math.isfinite(theirs) else math.inf


def _label_ids_file(pair: Pair) -> Path | None:
    """The image's official labelIds file, if there is one that the tool can read: it knows no 255."""
    assert pair.label is not None
    path = pair.label.parent / (pair.label.name.split("_gtFine_")[0] + LABEL_IDS_SUFFIX)
    return path if path.is_file() and read_label(path).max() <= LABELS[-1].id else None


def _run(predictions: list[str], truths: list[str]) -> dict[str, Any]:
    """The tool's results; what it prints stays inside, and what makes it end the program becomes an error."""
    tool, said = _tool(), io.StringIO()
    arguments = copy.copy(tool.args)
    arguments.evalInstLevelScore = arguments.evalPixelAccuracy = arguments.JSONOutput = False
    arguments.quiet = True
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results: dict[str, Any] = tool.evaluateImgLists(predictions, truths, arguments)
    except SystemExit as error:
        why = " ".join(said.getvalue().split())[-300:]
        raise DataError("cityscapesScripts refuses the files", why=why, hint="Check the labelIds files.") from error
    return results


def require_agreement(official: OfficialScores) -> None:
    """Raises CheckFailed where the official figures are not ours."""
    if not official.difference <= AGREES:
        why = f"the largest difference of an IoU is {official.difference:.3g}"
        hint = "The labelTrainIds and labelIds files of the data set may not belong together."
        raise CheckFailed("cityscapesScripts finds other figures", why=why, hint=hint)
