"""`dgmn2 eval` as a user meets it: tables, reports, verdicts, messages, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from networks import stand_ins
from streets import make_tree

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.inference.load import build_model
from dgmn2cli.resources import zoo_path

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--scale", "64x32", "--window", "32", "--stride", "24", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "naive.pth"
    return write_checkpoint(path, stand_ins(lambda: build_model("setr_naive-tiny")), {"iter": 40000})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["eval", *map(str, arguments), *SMALL])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_table_report_and_official_figure(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    make_tree(tmp_path / "data" / "cityscapes", 3)
    code, out, err = run(
        "setr_naive-tiny", "--checkpoint", checkpoint, "--report", "out/r.json", "--official", "--save-preds", "preds"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["class", "IoU,", "%", "accuracy,", "%", "pixels"]
    assert len([line for line in lines if line.startswith(("road ", "bicycle ", "vehicle "))]) == 3
    for name in ("aAcc", "mIoU", "mAcc", "category mIoU", "cityscapesScripts"):
        assert any(line.startswith(name) for line in lines), name
    assert "0.000000000000 at most" in out
    assert "3 of 3 in split val of data/cityscapes" in out
    assert "no comparison" in out
    assert "not the Cityscapes val split" in out
    assert "PARTIAL" not in out
    report = json.loads(Path("out/r.json").read_text())
    assert report["run"]["model"] == "setr_naive-tiny"
    assert report["run"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert len(report["data"]["sha256"]) == 64
    assert report["data"]["sizes"] == {"40x24": 3}
    assert f"{100 * report['scores']['mean_iou']:.2f} %" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "preds"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r.json"]
    assert len(list((tmp_path / "preds").rglob("*.png"))) == 6


def test_a_user_without_a_home_needs_no_cache(
    run: Run, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path / "data" / "cityscapes", 2)
    for name in ("DGMN2_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    code, _, err = run("setr_naive-tiny", "--checkpoint", checkpoint, "--report", "r.json")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "r.json").read_text())["comparison"] is None
    for command in (["info", str(checkpoint)], ["zoo", "list"], ["zoo", "show"], ["doctor", "--device", "cpu"]):
        assert main(command) == 0, command


def test_partial_runs_are_labelled_and_have_no_verdict(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    root = make_tree(tmp_path / "city", 3)
    code, out, err = run(
        "-m", "setr_naive-tiny", "--checkpoint", checkpoint, "--data-root", root, "--limit", 2, "--check"
    )
    assert code == 1
    assert out.startswith("PARTIAL: 2 of 3 images\n")
    assert err.startswith("Error: no verdict is possible (setr_naive-tiny): ")
    assert "the run is partial: 2 of 3 images" in err
    assert len(err.splitlines()) == 1


def test_json_is_one_document(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    root = make_tree(tmp_path / "city", 1, classes=[0, 1])
    code, out, err = run("setr_naive-tiny", "--checkpoint", checkpoint, "--data-root", root, "--json", "--ms-flip")
    assert (code, len(err.splitlines())) == (0, 1)  # no id above 18: training ids under a wrong name?
    report = json.loads(out)
    assert report["scores"]["classes"][5]["accuracy"] is None
    assert report["protocol"]["flip"]
    assert report["comparison"] is None
    assert "pole" in report["scores"]["absent"]


def test_absent_classes_are_said(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    root = make_tree(tmp_path / "city", 1, classes=[0, 1])
    code, out, _ = run("setr_naive-tiny", "--checkpoint", checkpoint, "--data-root", root)
    assert code == 0
    assert "Not in the labels, left out of the means unless predicted (then IoU 0): building, wall" in out
    assert "n/a" in next(line for line in out.splitlines() if line.startswith("wall "))


def test_what_is_left_out_is_named(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    root = make_tree(tmp_path / "city", 2)
    image = sorted((root / "leftImg8bit" / "val").rglob("*.png"))[0]
    image.unlink()
    image.mkdir()
    code, out, err = run("setr_naive-tiny", "--checkpoint", checkpoint, "--data-root", root, "--json")
    assert (code, json.loads(out)["data"]["images"]) == (0, 1)
    assert f"left out 1 (a folder named like a file): {image.parent.name}/{image.name}" in err
    assert "no image belongs to this label map" in err


@pytest.mark.slow
def test_two_processes(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    root = make_tree(tmp_path / "city", 3)
    arguments = ("setr_naive-tiny", "--checkpoint", checkpoint, "--data-root", root, "--json")
    alone = json.loads(run(*arguments)[1])
    code, out, err = run(*arguments, "--gpus", 2)
    assert (code, err) == (0, "")
    assert json.loads(out)["confusion"] == alone["confusion"]
    assert json.loads(out)["processes"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--resume"], 2, "--resume needs --report FILE"),
        (["--window", "10", "--stride", "20"], 2, "the sliding window is impossible"),
        (["--data-root", "nowhere"], 6, "cannot open the data set (nowhere): there is no such folder"),
        (["--split", "holiday"], 6, "cannot open the data set"),
        (["--gpus", "0"], 2, "invalid value for '--gpus'"),
        (["--limit", "0"], 2, "invalid value for '--limit'"),
        (["--tolerance", "-1"], 2, "invalid value for '--tolerance'"),
        (["--checkpoint", "gone.pth"], 5, "gone.pth"),
        (["nosuch"], 2, "no such model (nosuch)"),
        (["--all", "--checkpoint", "x.pth"], 2, "--all evaluates every model on disk"),
        (["--all", "fpn-tiny"], 2, "--all evaluates every model on disk"),
        (["--all", "-m", "fpn-tiny"], 2, "--all evaluates every model on disk"),
        (["--all"], 5, "no model's weights are on disk"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make_tree(tmp_path / "city", 1)
    assert main(["eval", "--data-root", "city", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("Error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["city"]


def test_two_gpus_are_refused_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert main(["eval", "--gpus", "2", "--data-root", "nowhere", "--checkpoint", "nothing.pth"]) == 5
    assert "not enough GPUs (--gpus 2): this machine has 1 CUDA device." in capsys.readouterr().err


def test_missing_weights_are_not_fetched_offline(run: Run, tmp_path: Path) -> None:
    code, out, err = run("fpn-tiny", "--data-root", make_tree(tmp_path / "city", 1), "--offline")
    assert (code, out) in ((4, ""), (5, ""))
    assert "fpn-tiny" in err


def test_faulty_data_is_named(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    root = make_tree(tmp_path / "city", 3)
    labels = sorted((root / "gtFine").rglob("*.png"))
    for path in labels[:2]:
        path.write_bytes(b"")
    code, out, err = run("setr_naive-tiny", "--checkpoint", checkpoint, "--data-root", root)
    assert (code, out) == (6, "")
    assert len(err.splitlines()) == 3
    assert all(path.name in line for path, line in zip(labels, err.splitlines()[:2], strict=False))


def test_an_interrupted_run_is_continued(
    run: Run, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dgmn2cli.cli.progress import TerminalObserver

    root = make_tree(tmp_path / "city", 3)
    arguments = ("setr_naive-tiny", "--checkpoint", checkpoint, "--data-root", root, "--report", "r.json")

    def stop(self: object, counted: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TerminalObserver, "result", stop)
        assert run(*arguments)[0] == 130
    assert Path("r.json.journal").exists()
    code, _, err = run(*arguments)
    assert code == 2
    assert "1 of 3 images are counted. Go on with --resume" in err
    code, _, err = run(*arguments, "--resume")
    assert (code, err) == (0, "setr_naive-tiny: going on after 1 of 3 images\n")
    assert json.loads(Path("r.json").read_text())["resumed"] == 1
    assert not Path("r.json.journal").exists()


def test_the_whole_zoo(run: Run, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads(zoo_path().read_text())
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    for entry in manifest["segmentors"]:
        if entry["key"] == "setr_naive-tiny":
            entry |= {"sha256": sha256, "size": checkpoint.stat().st_size}
    (tmp_path / "zoo.json").write_text(json.dumps(manifest))
    (tmp_path / "cache" / "files").mkdir(parents=True)
    shutil.copy(checkpoint, tmp_path / "cache" / "files" / f"{sha256}.pth")
    root = make_tree(tmp_path / "city", 1)
    arguments = ("--all", "--data-root", root, "--zoo", "zoo.json", "--cache", "cache")
    code, out, err = run(*arguments, "--check", "--report", "r.json")
    assert code == 1
    assert "no verdict is possible (setr_naive-tiny)" in err
    rows = {line.split()[0]: line for line in out.splitlines() if "-" in line[:20]}
    assert len(rows) >= 16
    assert "not on disk" in rows["fpn-large"]
    assert "not on disk" not in rows["setr_naive-tiny"]
    report = json.loads(Path("r.json").read_text())
    assert len(report["missing"]) == 15
    [only] = report["reports"]
    assert f"{100 * only['scores']['mean_iou']:.2f}" in rows["setr_naive-tiny"]
    assert not any("sha256" in reason or "hash" in reason for reason in only["no_comparison"])


@pytest.mark.slow
def test_under_torchrun(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    root = make_tree(tmp_path / "city", 3)
    arguments = ("setr_naive-tiny", "--checkpoint", checkpoint, "--data-root", root, "--json")
    alone = json.loads(run(*arguments)[1])
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "dgmn2cli",
    ]
    command = [*launcher, "eval", *map(str, arguments), *SMALL, "--report", "r.json", "--resume", "--official"]
    environment = {**os.environ, "PYTHONPATH": str(zoo_path().parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["confusion"], report["processes"]) == (alone["confusion"], 2)
    assert json.loads(Path("r.json").read_text()) == report
    assert report["official"]["difference"] < 1e-12


def test_a_report_page_tables_and_their_verification(
    run: Run, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, weights = make_tree(tmp_path / "city", 3), shutil.copy(checkpoint, tmp_path / "own.pth")
    arguments = ("setr_naive-tiny", "--checkpoint", "own.pth", "--data-root", root, "--report", "r.json")
    code, out, _ = run(*arguments, "--html", "r.html", "--csv", "tables")
    assert code == 0
    assert any(line.startswith("mIoU ") and "% interval" in line for line in out.splitlines())
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in ("boundary mIoU", "calibration"))
    report = json.loads(Path("r.json").read_text())
    assert report["command"].startswith("dgmn2 eval setr_naive-tiny --checkpoint own.pth --data-root ")
    assert report["command"] in Path("r.html").read_text().replace("&#39;", "'")
    assert sorted(path.name for path in Path("tables").iterdir()) == ["classes.csv", "images.csv"]
    assert main(["verify", "r.json"]) == 0
    assert "r.json holds" in capsys.readouterr().out
    os.unlink(weights)
    assert main(["verify", "r.json"]) == 2
    assert "Name it with --checkpoint FILE." in capsys.readouterr().err
    assert main(["verify", "r.json", "--checkpoint", str(checkpoint)]) == 0
    assert main(["verify", "r.json", "--checkpoint", str(checkpoint), "--data-root", "nowhere"]) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--from", "preds", "-m", "fpn-tiny"], 2, "--from needs no model"),
        (["--from", "preds", "--checkpoint", "x.pth"], 2, "--from needs no model"),
        (["--from", "preds", "--ms-flip", "--window", "64"], 2, "leave out --ms-flip, --window"),
        (["--from", "preds", "--official"], 2, "leave out --from"),
        (["--from", "preds", "--save-preds", "x"], 2, "leave out --from"),
        (["--from", "preds"], 6, "cannot read the predictions (preds): there is no such folder"),
        (["--from", "city"], 6, "1 of 1 images have no file"),
        (["--all", "--html", "x.html"], 2, "leave out --all"),
        (["--all", "--from", "preds"], 2, "leave out --all"),
        (["--from", "city", "--html", "city/gtFine"], 5, "cannot write the file (city/gtFine)"),
        (["--from", "city", "--html", "city"], 2, "is also what '--data-root' names"),
        (["--from", "city", "--csv", "file"], 5, "is no folder"),
    ],
)
def test_refusals_of_pages_and_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make_tree(tmp_path / "city", 1)
    (tmp_path / "file").write_text("")
    assert main(["eval", "--data-root", "city", *arguments]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("Error: ")) == ("", 1)
    assert message in captured.err
