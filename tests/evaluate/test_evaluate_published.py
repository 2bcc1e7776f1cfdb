"""The published figure is shown only where the same thing was measured; cityscapesScripts finds what we find."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streets import SMALL, Colours, Load, Watcher, make_tree, scene, segmenter

from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.cityscapes import LABEL_ID_OF_TRAIN_ID
from dgmn2cli.data.dataset import Pair, SegmentationSet
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import CheckFailed, ConfigError, DataError, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.evaluate import EvalReport, Settings, evaluate
from dgmn2cli.evaluate.official import official_scores, require_agreement, require_official
from dgmn2cli.evaluate.predictions import PredictionFolder
from dgmn2cli.evaluate.published import VAL_CITIES, compare_with_published, require_verdicts
from dgmn2cli.evaluate.report import DataInfo
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import require_all_sound, run, run_zoo
from dgmn2cli.inference.plan import resolve_settings
from dgmn2cli.zoo import load_zoo

ENTRY = load_zoo().find("setr_pup-tiny")
HASH = "ab" * 32


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvalReport, SegmentationSet]:
    """A report as a whole published run gives it, its figures aside, and the pictures' names."""
    root = make_tree(tmp_path_factory.mktemp("city"), 1)
    small = open_dataset(root, "val")
    ids = small.pairs[0].ids
    names = [f"{city}_{i:06d}_000019" for city, count in VAL_CITIES.items() for i in range(count)]
    pairs = [Pair(name, Path("leftImg8bit/val", name.split("_")[0], name), None, ids) for name in names]
    whole = replace(small, pairs=tuple(pairs))
    info = DataInfo(str(root), "val", "cityscapes", 500, 500, {"2048x1024": 500}, "00")
    report = evaluate(segmenter(), small, SMALL)
    return replace(report, data=info, protocol=resolve_settings(Settings(), InferenceConfig())), whole


def measured(report: EvalReport, percent: float) -> EvalReport:
    return replace(report, scores=replace(report.scores, mean_iou=percent / 100))


def test_a_whole_published_run_is_compared(val: Any) -> None:
    report, data = val
    assert ENTRY.miou is not None
    assert ENTRY.miou_ms_flip is not None
    for off, within in [(0.0, True), (0.0999, True), (-0.0999, True), (0.11, False), (-3.0, False)]:
        found = compare_with_published(measured(report, ENTRY.miou + off), data, ENTRY, HASH, 0.1)
        assert found.comparison is not None
        assert found.no_comparison == ()
        assert found.comparison.within is within
        assert found.comparison.difference == pytest.approx(off)
        assert found.comparison.published == ENTRY.miou
        if within:
            require_verdicts([found])
        else:
            with pytest.raises(CheckFailed, match=r"not the published one.*off by") as caught:
                require_verdicts([found])
            assert caught.value.exit_code == 1
    loose = compare_with_published(measured(report, ENTRY.miou + 2), data, ENTRY, HASH, 3)
    assert loose.comparison is not None
    assert loose.comparison.within
    multi = replace(report, protocol=resolve_settings(Settings(ms_flip=True), InferenceConfig()))
    found = compare_with_published(measured(multi, ENTRY.miou_ms_flip), data, ENTRY, HASH, 0.1)
    assert found.comparison is not None
    assert found.comparison.published == ENTRY.miou_ms_flip
    nothing = compare_with_published(measured(report, float("nan")), data, ENTRY, HASH, 0.1)
    assert nothing.comparison is not None
    assert not nothing.comparison.within


def _with(report: EvalReport, **changes: object) -> EvalReport:
    return replace(report, data=replace(report.data, **changes))


def _procedure(report: EvalReport, **settings: object) -> EvalReport:
    return replace(report, protocol=resolve_settings(Settings(**settings), InferenceConfig()))


REASONS: list[tuple[str, Callable[[EvalReport], EvalReport], dict[str, object], str]] = [
    ("no entry", lambda r: r, {"entry": None}, "not in the zoo"),
    ("unknown hash", lambda r: r, {"known_sha256": None}, "hash of the published weights is not known"),
    ("other hash", lambda r: r, {"known_sha256": "cd" * 32}, "not the published one .sha256 ababababab"),
    ("no figure", lambda r: r, {"entry": replace(ENTRY, miou=None)}, "no figure is published"),
    ("partial", lambda r: _with(r, images=10), {}, "partial: 10 of 500"),
    ("split", lambda r: _with(r, split="train"), {}, "split train of a cityscapes data set"),
    ("kind", lambda r: _with(r, kind="folder"), {}, "split val of a folder data set"),
    ("size", lambda r: _with(r, sizes={"1024x512": 500}), {}, "not the Cityscapes val split"),
    ("scale", lambda r: _procedure(r, scale=(1024, 512)), {}, "scale 1024x512 instead of 2049x1025"),
    ("window", lambda r: _procedure(r, window=768), {}, "window 768 instead of 769"),
    ("stride", lambda r: _procedure(r, stride=512), {}, "stride 512 instead of 513"),
    ("native", lambda r: _procedure(r, protocol="native"), {}, "name native instead of paper"),
]


@pytest.mark.parametrize(
    ("change", "settings", "reason"), [row[1:] for row in REASONS], ids=[row[0] for row in REASONS]
)
def test_anything_else_is_not(val: Any, change: Any, settings: dict[str, Any], reason: str) -> None:
    report, data = val
    arguments = {"entry": ENTRY, "known_sha256": HASH, "tolerance": 100.0, **settings}
    found = compare_with_published(measured(change(report), 78), data, **arguments)
    assert found.comparison is None
    assert len(found.no_comparison) == 1
    with pytest.raises(CheckFailed, match=f"no verdict is possible.*{reason}"):
        require_verdicts([found])


def test_500_pictures_of_other_cities_are_not_cityscapes(val: Any) -> None:
    report, data = val
    pairs = [replace(pair, image=Path("seefeld", pair.image.name)) for pair in data.pairs]
    found = compare_with_published(report, replace(data, pairs=tuple(pairs)), ENTRY, HASH, 0.1)
    assert "500 images, of seefeld" in found.no_comparison[0]


def test_several_verdicts(val: Any) -> None:
    report, data = val
    assert ENTRY.miou is not None
    good, bad = (compare_with_published(measured(report, ENTRY.miou - off), data, ENTRY, HASH, 0.1) for off in (0, 5))
    with pytest.raises(CheckFailed, match="1 of 2 models") as caught:
        require_verdicts([good, bad])
    assert len(caught.value.faults) == 1
    require_verdicts([good, good])


# --- the official tool


@pytest.mark.parametrize("ids", [("labelIds",), ("labelTrainIds",), ("labelTrainIds", "labelIds")])
def test_the_official_tool_agrees(tmp_path: Path, ids: tuple[str, ...]) -> None:
    """Classes 2, 3 and 16 are absent; some of the absent ones are predicted, class 8 never is."""
    data = open_dataset(make_tree(tmp_path / "city", 3, ids=ids, classes=[0, 1, 4, 5, 8, 10, 13, 17]), "val")
    report = evaluate(segmenter(Colours(never=(8, 16))), data, SMALL, save_preds=tmp_path / "preds")
    by_name = {score.name: score for score in report.scores.classes}
    assert {"building", "wall", "train"} <= set(report.scores.absent)
    assert any(by_name[name].predicted for name in report.scores.absent)
    assert np.isnan(by_name["train"].iou)
    keep = PredictionFolder.of(tmp_path / "preds", data)
    official = official_scores(data, [keep.targets(pair.name)[1] for pair in data.pairs], report.scores)
    assert official.difference < 1e-12
    assert f"{official.mean_iou:.12f}" == f"{report.scores.mean_iou:.12f}"
    assert f"{official.mean_category_iou:.12f}" == f"{report.scores.mean_category_iou:.12f}"
    assert official.converted_labels == (0 if "labelIds" in ids else 3)
    require_agreement(official)
    with pytest.raises(CheckFailed, match="finds other figures"):
        require_agreement(replace(official, difference=1e-6))
    other = replace(report.scores, mean_iou=float("nan"))
    assert official_scores(data, [keep.targets(p.name)[1] for p in data.pairs], other).difference == np.inf


@pytest.mark.filterwarnings("ignore")
def test_the_official_tool_finds_the_kept_predictions(tmp_path: Path) -> None:
    data = open_dataset(make_tree(tmp_path / "city", 2), "val")
    evaluate(segmenter(), data, SMALL, save_preds=tmp_path / "preds")
    keep = PredictionFolder.of(tmp_path / "preds", data)
    tool = importlib.import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    arguments = SimpleNamespace(predictionPath=str(keep.label_ids), predictionWalk=None)
    for pair in data.pairs:
        assert tool.getPrediction(arguments, str(pair.label)) == str(keep.targets(pair.name)[1])


def test_the_whole_run_asks_the_official_tool(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path / "city", 2)
    report = run(EvalRequest(root, settings=SMALL, official=True), Load(), Watcher())
    assert report.official is not None
    assert report.official.difference < 1e-12
    assert report.official.mean_iou == pytest.approx(report.scores.mean_iou)
    assert capfd.readouterr() == ("", "")
    label = next((root / "gtFine").rglob("*.png"))
    stored = LABEL_ID_OF_TRAIN_ID[scene(1)[1]]
    stored[:2] = 255  # ignored by us, unknown to the tool
    write_png(label, stored)
    report = run(EvalRequest(root, settings=SMALL, official=True), Load(), Watcher())
    assert report.official is not None
    assert (report.official.converted_labels, report.official.difference < 1e-12) == (1, True)


def test_files_the_official_tool_refuses(tmp_path: Path) -> None:
    data = open_dataset(make_tree(tmp_path / "city", 2), "val")
    wrong = write_png(tmp_path / "wrong.png", np.full((24, 39), 7, np.uint8))
    scores = evaluate(segmenter(), data, SMALL).scores
    with pytest.raises(DataError, match=r"cityscapesScripts refuses the files: .*widths.*are not equal"):
        official_scores(data, [wrong, wrong], scores)


def test_the_official_tool_may_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_official()
    with pytest.raises(ConfigError, match="for Cityscapes"):
        require_official("folder")
    name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ResourceError, match=r"dgmn2cli\[cityscapes\]") as caught:
        run(EvalRequest(make_tree(tmp_path / "city", 1), official=True), Load("odd"), Watcher())
    assert caught.value.exit_code == 5


# --- the whole zoo


def test_a_damaged_model_does_not_stop_the_others(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "city", 2)
    names = {"one": "well", "two": "nan", "three": "broken", "four": "well"}
    models = [Load(how, model=name) for name, how in names.items()]
    request = EvalRequest(root, settings=SMALL, report=tmp_path / "zoo.json", save_preds=tmp_path / "preds")
    report = run_zoo(request, models, ["five"], Watcher())
    assert len(report.reports) == 2
    assert [failure.model for failure in report.failures] == ["two", "three"]
    assert report.missing == ("five",)
    with pytest.raises(IntegrityError, match="2 models") as caught:
        require_all_sound(report)
    assert len(caught.value.faults) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["city", "preds", "zoo.json"]
    assert {"one", "four"} <= {path.name for path in (tmp_path / "preds").iterdir()}


def test_the_zoo_goes_on_where_it_was(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "city", 3)
    models = [Load(model=name) for name in ("one", "two")]
    request = EvalRequest(root, settings=SMALL, report=tmp_path / "zoo.json")
    with pytest.raises(KeyboardInterrupt):
        run_zoo(request, models, [], Watcher(stop_after=4))
    watcher = Watcher()
    report = run_zoo(replace(request, resume=True), models, [], watcher)
    assert watcher.started == [("one", 3, 3), ("two", 3, 1)]
    assert [found.resumed for found in report.reports] == [3, 1]
    whole = run(replace(request, report=None), Load(), Watcher())
    assert all(found.confusion == whole.confusion for found in report.reports)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["zoo.json"]
    with pytest.raises(NonFiniteError):
        run(request, Load("broken"), Watcher())
