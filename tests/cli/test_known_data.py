"""Known data sets and corrupted images from the command line: what is printed, what a report holds, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.data.folder import load_description
from dgmn2cli.inference.load import build_model
from dgmn2cli.model.filled import filled_state

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--scale", "64x32", "--window", "32", "--stride", "24", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "naive.pth"
    return write_checkpoint(path, filled_state(build_model("setr_naive-tiny")), {"iter": 40000})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def draw(run: Run, name: str, folder: str) -> None:
    code, _, err = run("data", "synth", folder, "--layout", name, "--images", 2, "--size", "64x64")
    assert code == 0, err


def test_an_evaluation_of_corrupted_images_of_a_known_set_is_told_and_verified(run: Run, checkpoint: Path) -> None:
    draw(run, "idd-csids", "data/idd-csids")
    arguments = ("eval", "setr_naive-tiny", "--checkpoint", checkpoint, "--dataset", "idd-csids", *SMALL)
    code, out, err = run(*arguments, "--corrupt", "night:2,noise:1", "--report", "worse.json")
    assert code == 0, err
    assert "mapping              idd-csids, sha256 " in out
    assert "without counterpart  terrain" in out
    assert "corruption           night:2,noise:1" in out
    worse = json.loads(Path("worse.json").read_text())
    assert worse["data"]["mapping"]["without"] == ["terrain"]
    assert worse["data"]["corruption"] == "night:2,noise:1"
    assert "the images were corrupted (night:2,noise:1)" in worse["no_comparison"]
    assert run("verify", "worse.json", "--device", "cpu")[0] == 0
    clean = json.loads(run(*arguments, "--json", "--report", "clean.json")[1])
    compared = json.loads(run("compare", "clean.json", "worse.json", "--json")[1])
    assert [compared[which]["corruption"] for which in ("first", "second")] == ["", "night:2,noise:1"]
    assert clean["data"]["corruption"] == ""
    assert clean["confusion"] != worse["confusion"]
    worse["data"]["corruption"] = ""
    Path("tampered.json").write_text(json.dumps(worse))
    assert run("verify", "tampered.json", "--device", "cpu")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dataset", "acd"], 2, "no such data set (acd): known are"),
        (["--dataset", "acdc"], 6, "cannot open the data set (data/acdc/rgb_anon)"),
        (["--corrupt", "rain:1"], 2, "'rain' is none of fog, night, blur, noise, jpeg"),
        (["--corrupt", "fog:6"], 2, "wanted 1 to 5"),
        (["--corrupt", "fog:1", "--from", "preds"], 2, "leave out --corrupt"),  # which made these, nothing says
    ],
)
def test_refusals(run: Run, arguments: list[str], code: int, message: str) -> None:
    found, out, err = run("eval", *arguments)
    assert (found, out) == (code, "")
    assert message in err


def test_presets_and_templates(run: Run) -> None:
    code, out, _ = run("data", "presets")
    assert code == 0
    assert len(out.splitlines()) == 2 + 13 + 1
    known = json.loads(run("data", "presets", "--json")[1])
    assert {"name", "title", "source", "licence", "note", "images", "labels", "splits", "mapping"} == set(known[0])
    code, out, _ = run("data", "template", "idd")
    Path("dataset.toml").write_text(out)
    assert dict(load_description("dataset.toml").id_map)[5] == "terrain"
    assert run("data", "template", "id")[0] == 2
    assert json.loads(run("config", "check", "dataset.toml", "--json")[1])["splits"] == ["train", "val"]
    Path("dataset.toml").write_text(out.replace("[255]", "[-1]").replace("\ntitle", "\ntittle"))
    code, out, _ = run("config", "check", "dataset.toml")
    assert (code, [line.split(":")[0] for line in out.splitlines()]) == (2, ["ignore", "tittle"])


def test_all_splits_of_a_known_set_that_are_there_are_checked(run: Run) -> None:
    draw(run, "acdc", "a")
    checked = json.loads(run("data", "check", "a", "--dataset", "acdc", "--json")[1])
    assert [report["split"] for report in checked] == ["train", "val"]
    assert run("data", "check", ".", "--dataset", "acdc")[0] == 6
    assert run("data", "synth", "c", "--images", 2, "--size", "64x64")[0] == 0
    assert run("data", "check", "c", "--dataset", "idd")[0] == 6  # labelIds of Cityscapes, not labelids


def test_a_sheet_of_augmented_samples(run: Run) -> None:
    draw(run, "acdc", "a")
    code, out, err = run("data", "browse", "a", "--dataset", "acdc", "-m", "setr_naive-tiny", "-o", "s.png", "--json")
    assert code == 0, err
    assert json.loads(out) == {"sheet": "s.png", "samples": ["drawn/train/nordhafen_000000"]}
    sheet = cv2.imread("s.png")
    assert sheet.shape[1] > 3 * 480


def test_explaining_from_the_command_line(run: Run, checkpoint: Path) -> None:
    cv2.imwrite("a.png", cv2.UMat(40, 60, cv2.CV_8UC3, (90, 120, 30)).get())
    arguments = ("explain", "a.png", "-m", "setr_naive-tiny", "--checkpoint", checkpoint, *SMALL)
    code, out, err = run(*arguments, "--at", "30,20", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert [(block["stage"], block["block"]) for block in report["blocks"]] == [
        (s, b) for s in range(1, 5) for b in (1, 2)
    ]
    assert all(len(head["nodes"]) == 9 for block in report["blocks"] for head in block["heads"])
    assert Path("dgmn2-output/a_30_20_graph.svg").is_file()
    assert run(*arguments, "--at", "30,20")[0] == 2  # the files are there
    assert run(*arguments, "--at", "60,20")[0] == 2
    assert run(*arguments, "--at", "here")[0] == 2
    assert run("explain", "a.png", "--at", "1,1", "--graph", "g")[0] == 2
    assert run("explain", "gone.png", "--at", "1,1")[0] == 6
