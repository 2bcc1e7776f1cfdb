"""`dgmn2 submit` as a user meets it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from networks import stand_ins
from streets import SMALL, make_tree, segmenter

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.evaluate import evaluate
from dgmn2cli.inference.load import build_model


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)
    return tmp_path


def test_from_a_model_and_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(folder / "city", 2, split="test", ids=())
    weights = write_checkpoint(folder / "naive.pth", stand_ins(lambda: build_model("setr_naive-tiny")), {"iter": 1})
    small = ("--scale", "64x32", "--window", "32", "--stride", "24", "--device", "cpu")
    code = main(["submit", "setr_naive-tiny", "--checkpoint", str(weights), "--data-root", "city", "-o", "sub", *small])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    assert captured.out.splitlines()[-1].startswith("zip")
    assert "2 of 2 files, no faults" in captured.out
    assert sorted(path.name for path in folder.iterdir()) == ["city", "naive.pth", "sub", "sub.zip"]
    with zipfile.ZipFile("sub.zip") as archive:
        assert len(archive.namelist()) == 2

    assert main(["submit", "--validate", "sub.zip", "--data-root", "city"]) == 0
    assert main(["submit", "--validate", "sub.zip", "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out[captured.out.index("{") :])
    assert len(report["faults"]) == 2 + 6
    assert "Error: the submission is not valid (sub.zip): 8 faults" in captured.err
    assert captured.err.count("it is of no test city") == 2


def test_from_kept_predictions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(folder / "city", 3)
    evaluate(segmenter(), open_dataset(root, "val"), SMALL, save_preds=folder / "preds", limit=2)
    arguments = ["submit", "--from", "preds", "--data-root", "city", "--split", "val", "--zip", "out/a.zip"]
    assert main(arguments) == 6
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "ulm_000002_000019: no file"
    assert not Path("out").exists()
    evaluate(segmenter(), open_dataset(root, "val"), SMALL, save_preds=folder / "preds")
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["zip"], report["run"], report["check"]["files"]) == ("out/a.zip", None, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--validate", "gone.zip"], 5, "cannot read the zip (gone.zip): there is no such file"),
        (["--validate", "a.zip"], 1, "the submission is not valid"),
        (["--validate", "a.zip", "--data-root", "nowhere"], 6, "there is no such folder"),
        (["--data-root", "nowhere"], 6, "there is no such folder"),
        (["--data-root", "nowhere", "--from", "gone"], 6, "there is no such folder"),
        (["nosuch", "--data-root", "nowhere"], 2, "no such model (nosuch)"),
        (["--data-root", "nowhere", "--from", "gone", "--checkpoint", "w.pth"], 2, "leave out --checkpoint"),
        (["fpn-tiny", "--validate", "a.zip", "--stride", "9"], 2, "leave out the model, --stride"),
    ],
)
def test_refusals(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    (folder / "a.zip").write_bytes(b"no zip")
    assert main(["submit", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert [path.name for path in folder.iterdir()] == ["a.zip"]
