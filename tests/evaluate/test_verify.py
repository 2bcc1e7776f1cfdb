"""A report holds or it does not: every tampering is found, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from networks import stand_ins
from streets import SMALL, Load, Watcher, make_tree

import dgmn2cli
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.cityscapes import CLASSES
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import CheckFailed, ConfigError, DataError, Dgmn2Error
from dgmn2cli.evaluate.engine import network_source
from dgmn2cli.evaluate.reading import read_report
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run
from dgmn2cli.evaluate.verify import Verification, settings_of, verify
from dgmn2cli.inference.load import build_model

IMAGES = 8


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report, and its data set beside it."""
    folder = tmp_path_factory.mktemp("verify")
    root = make_tree(folder / "city", IMAGES)
    request = EvalRequest(root, settings=SMALL, report=folder / "r.json", device="cpu", workers=1)
    run(request, Load(), Watcher())
    return folder / "r.json"


def verified(path: Path, how: str = "well") -> Verification:
    report = read_report(path)
    data = open_dataset(report.plain["data"]["root"], report.plain["data"]["split"])
    source = network_source(Load(how)(device="cpu"), data, settings_of(report))
    return verify(report, data, source)


def test_an_untouched_report_holds(original: Path, tmp_path: Path) -> None:
    found = verified(original)
    assert (found.images, len(found.run_again)) == (IMAGES, 5)
    compact = tmp_path / "compact.json"
    compact.write_text(json.dumps(json.loads(original.read_text())))
    assert verified(compact).mean_iou == found.mean_iou, "only its layout is another"


def _put(value: object, *keys: str | int) -> Callable[[dict[str, Any]], object]:
    def change(plain: Any) -> None:
        for key in keys[:-1]:
            plain = plain[key]
        assert plain[keys[-1]] != value
        plain[keys[-1]] = value

    return change


def _first_record(plain: dict[str, Any]) -> None:
    record = plain["certificate"]["records"][0]
    head, entry, *rest = record["confusion"].split()
    index, _, value = entry.partition(":")
    record["confusion"] = " ".join([head, f"{index}:{int(value) + 1}", *rest])


def _swap(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(plain: Any) -> None:
        for key in keys:
            plain = plain[key]
        plain[0], plain[1] = plain[1], plain[0]

    return change


TAMPERINGS: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("scores.mean_iou", _put(0.9, "scores", "mean_iou")),
    ("scores.classes[3].iou", _put(0.9, "scores", "classes", 3, "iou")),
    ("confusion[2][3]", _put(12345, "confusion", 2, 3)),
    ("intervals.mean_iou[0]", _put(0.5, "intervals", "mean_iou", 0)),
    ("images[4].pixel_accuracy", _put(1.0, "images", 4, "pixel_accuracy")),
    ("images[0].name", _put("other", "images", 0, "name")),
    ("boundary.mean_iou", _put(0.99, "boundary", "mean_iou")),
    ("calibration.ece", _put(0.0, "calibration", "ece")),
    ("calibration.temperature", _put(1.0, "calibration", "temperature")),
    ("fine_grained.mIoU-I", _put(0.99, "fine_grained", "mIoU-I")),
    ("scores", _first_record),
    ("scores", _swap("certificate", "classes")),
    ("certificate.fingerprint", _put("ab" * 32, "certificate", "fingerprint")),
    ("image_sha256", _put("ab" * 32, "certificate", "sample", 0, "image_sha256")),
    ("label_sha256", _put("ab" * 32, "certificate", "sample", 1, "label_sha256")),
    ("certificate.sample", _put("other", "certificate", "sample", 2, "name")),
    ("images[3].name", _put("other", "certificate", "records", 3, "name")),
    ("run.sha256", _put("cd" * 32, "run", "sha256")),
    ("run.model", _put("setr_pup-large", "run", "model")),
    ("run.dtype", _put("float16", "run", "dtype")),
    ("protocol.ratios", _put([0.5, 1.0], "protocol", "ratios")),
    ("certificate.digest", _put(20, "protocol", "stride")),
    ("partial", _put(9, "data", "of")),
    ("partial", _put(True, "partial")),
    ("certificate.digest", _put(1.5, "seconds")),
    ("certificate.digest", _put("5.0", "versions", "numpy")),
    ("certificate.digest", _put("", "certificate", "digest")),
]


@pytest.mark.parametrize(("place", "change"), TAMPERINGS)
def test_each_tampering_is_found_and_named(
    original: Path, tmp_path: Path, place: str, change: Callable[[dict[str, Any]], object]
) -> None:
    plain = json.loads(original.read_text())
    before = json.dumps(plain)
    change(plain)
    assert json.dumps(plain) != before
    (tmp_path / "r.json").write_text(json.dumps(plain))
    with pytest.raises(CheckFailed, match="the report does not hold") as caught:
        verified(tmp_path / "r.json")
    assert place in caught.value.why.split(": the report has")[0]
    assert caught.value.exit_code == 1


def test_a_report_signed_again_is_found_by_running_it(original: Path, tmp_path: Path) -> None:
    """Somebody changes a matrix, computes all figures and the digest anew: only the images themselves tell."""
    from dataclasses import fields

    from dgmn2cli.evaluate.analysis.counts import to_text
    from dgmn2cli.evaluate.analysis.summary import analyse
    from dgmn2cli.evaluate.certificate import digest_of, sampled
    from dgmn2cli.evaluate.counting import compute_scores
    from dgmn2cli.files import to_plain

    plain = json.loads(original.read_text())
    place = sampled(IMAGES)[0]
    matrix = read_report(original).certificate.records[place].matrix(19)
    row = int(matrix.sum(1).argmax())
    matrix[row, row] = matrix[row].sum()
    matrix[row, [c for c in range(20) if c != row]] = 0
    plain["certificate"]["records"][place]["confusion"] = to_text(matrix)
    (tmp_path / "r.json").write_text(json.dumps(plain))
    forged = read_report(tmp_path / "r.json")
    counts = forged.matrices.sum(0)
    analysis = analyse(forged.certificate.records, forged.certificate.classes, forged.temperatures)
    plain |= {field.name: to_plain(getattr(analysis, field.name)) for field in fields(analysis)}
    plain["scores"] = to_plain(compute_scores(counts, forged.certificate.classes, forged.certificate.categories))
    plain["confusion"] = counts.tolist()
    plain["certificate"]["digest"] = digest_of(plain)
    (tmp_path / "r.json").write_text(json.dumps(plain))
    with pytest.raises(CheckFailed) as caught:
        verified(tmp_path / "r.json")
    name = plain["certificate"]["records"][place]["name"]
    assert caught.value.why.startswith(f"image {name}: confusion: the report has")


def test_other_data_and_other_weights(original: Path, tmp_path: Path) -> None:
    report = read_report(original)
    data = open_dataset(report.plain["data"]["root"], "val")
    other = network_source(Load(sha256="ef" * 32)(device="cpu"), data, settings_of(report))
    with pytest.raises(CheckFailed, match=r"run\.sha256"):
        verify(report, data, other)
    elsewhere = open_dataset(make_tree(tmp_path / "city", IMAGES), "val")
    assert verify(report, elsewhere, network_source(Load()(device="cpu"), elsewhere, settings_of(report)))
    from dgmn2cli.evaluate.certificate import sampled

    pair = elsewhere.pairs[sampled(IMAGES)[0]]
    write_png(pair.image, data.read_image(1) // 2)
    with pytest.raises(CheckFailed, match="image_sha256"):
        verify(report, elsewhere, network_source(Load()(device="cpu"), elsewhere, settings_of(report)))


def test_what_is_no_report_is_refused_in_one_line(original: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    plain = json.loads(original.read_text())
    kinds: list[tuple[str, type[Dgmn2Error]]] = [
        ("", ConfigError),
        ("[]", ConfigError),
        ("{}", ConfigError),
        ("nonsense", ConfigError),
        (json.dumps({"reports": []}), ConfigError),
        (json.dumps({**plain, "certificate": {**plain["certificate"], "records": []}}), ConfigError),
        (json.dumps({**plain, "certificate": None}), ConfigError),
        (original.read_text()[:5000], ConfigError),
    ]
    for text, kind in kinds:
        path.write_text(text)
        with pytest.raises(kind, match="cannot read the report") as caught:
            read_report(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        read_report(tmp_path / "nowhere.json")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Predictions from files: no network is needed."""
    root = make_tree(tmp_path / "city", 6)
    data = open_dataset(root, "val")
    for i, pair in enumerate(data.pairs):
        write_png(tmp_path / "preds" / f"{pair.name}.png", data.read_label(i) % 19)
    report = tmp_path / "r.json"
    assert main(["eval", "--from", str(tmp_path / "preds"), "--data-root", str(root), "--report", str(report)]) == 0
    plain = json.loads(report.read_text())
    assert plain["command"].startswith("dgmn2 eval --from ")
    assert main(["verify", str(report)]) == 0
    out = capsys.readouterr().out
    assert f"{report} holds" in out
    assert main(["verify", str(report), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["run_again"]) == 5
    changed = tmp_path / "preds" / f"{data.pairs[0].name}.png"
    write_png(changed, (data.read_label(0) + 1) % 19)
    assert main(["verify", str(report)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "run.sha256" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_data_that_the_models_configuration_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folders and what its label values mean are in no file of the data set."""
    root, own = make_tree(tmp_path / "city", 2, ids=["labelTrainIds"]), tmp_path / "own.toml"
    own.write_text(
        f"""base = ["setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes"]
        inference = {{scale = [96, 64], window = 64, stride = 48}}
        [data]
        kind = "folder"
        root = "{root}"
        classes = {json.dumps(CLASSES)}
        val_images = "leftImg8bit/val"
        val_labels = "gtFine/val"
        image_suffix = "_leftImg8bit.png"
        label_suffix = "_gtFine_labelTrainIds.png"
        ignore_index = 0
        """
    )
    write_checkpoint(tmp_path / "w.pth", stand_ins(lambda: build_model("setr_naive-tiny")), {})
    report, weights = str(tmp_path / "reports" / "r.json"), str(tmp_path / "w.pth")
    run_on = ("--device", "cpu")
    assert main(["eval", str(own), "--checkpoint", weights, "--report", report, *run_on]) == 0
    plain = json.loads(Path(report).read_text())
    assert plain["data"]["kind"] == "folder"
    assert "road" in plain["scores"]["absent"]
    called = dgmn2cli.evaluate(dgmn2cli.load(own, weights, device="cpu"), root)
    assert [list(row) for row in called.confusion] == plain["confusion"]
    assert main(["verify", report, "-m", str(own)]) == 0
    capsys.readouterr()
    assert main(["verify", report]) == 2
    assert "Name its configuration with -m FILE" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[1]", "{}", '{"certificate": 1}', "3"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ConfigError, match="it has no certificate"):
        read_report(tmp_path / "r.json")


ODD: list[tuple[object, tuple[str | int, ...]]] = [
    (5, ("data", "root")),
    (None, ("data", "of")),
    ("x", ("protocol", "window")),
    ([], ("protocol", "ratios")),
    (None, ("run", "model")),
    (7, ("run", "sha256")),
    ([], ("run",)),
    ("x", ("certificate", "seed")),
    (-1, ("certificate", "seed")),
    ([1, 2, 3], ("certificate", "sample")),
    ([], ("certificate", "sample")),
    (None, ("certificate", "digest")),
    ({}, ("certificate", "temperatures")),
    (None, ("certificate", "temperatures")),
    (None, ("certificate", "records", 0, "boundary")),
    (None, ("certificate", "records", 1, "confidence")),
    ("19x20 999:1", ("certificate", "records", 0, "confusion")),
    ("19x20 0:-5", ("certificate", "records", 0, "confusion")),
    ("x", ("certificate", "records", 2, "doubt")),
    ({"x": 1}, ("certificate", "records", 0, "worst")),
    ([1], ("certificate", "records", 0, "size")),
    (None, ("scores",)),
    (True, ("comparison",)),
    (10**30, ("images", 0, "mean_iou")),
]


@pytest.mark.parametrize(("value", "place"), ODD)
def test_values_of_a_wrong_kind_end_in_one_line(
    original: Path, tmp_path: Path, value: object, place: tuple[str | int, ...]
) -> None:
    plain = json.loads(original.read_text())
    _put(value, *place)(plain)
    (tmp_path / "r.json").write_text(json.dumps(plain))
    with pytest.raises((CheckFailed, ConfigError)) as caught:
        verified(tmp_path / "r.json")
    assert "\n" not in str(caught.value)
