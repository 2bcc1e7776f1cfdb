"""`dgmn2 benchmark` end to end, on windows small enough to say nothing about speed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import pytest

from dgmn2cli.bench import baseline, images
from dgmn2cli.bench.baseline import plain_attention
from dgmn2cli.bench.implementations import Agreement
from dgmn2cli.cli import main
from dgmn2cli.errors import CheckFailed

SMALL = ("--window", "65", "--iters", "1", "--warmup", "0")


def test_infer_beside_the_plain_design(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "rows.csv"
    plot = tmp_path / "bars.png"
    files = ["--csv", str(table), "--plot", str(plot)]
    code = main(["benchmark", "setr_naive-tiny", *SMALL, "--against", "plain", "--json", *files])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    text = captured.out
    report = json.loads(text)
    assert "plain" in text
    assert "sha256" not in text
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 2
    assert [row["implementation"] for row in report["rows"]] == ["dgmn2cli", "plain"]
    bars = cv2.imread(str(plot))
    blue, orange = (int((bars == color).all(2).sum()) for color in ((178, 111, 31), (60, 140, 235)))
    assert blue > 500
    assert orange > 500  # two groups: times and memory


def test_decoding_beside_opencv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = ["--plot", str(tmp_path / "bars.svg")]
    assert main(["benchmark", "--bench", "decode", "--input", "640x480", "--iters", "3", "--json", *plot]) == 0
    report = json.loads(capsys.readouterr().out)
    names = ["baseline JPEG of 0.307 megapixels", "progressive JPEG of 0.307 megapixels"]
    assert [row["name"] for row in report["rows"]] == [name for name in names for _ in range(2)]
    assert [row["implementation"] for row in report["rows"]] == ["dgmn2cli", "opencv"] * 2
    assert [found["difference"] for found in report["agreements"]] == [0, 0]
    assert all(row["times_as_fast"] > 0 and row["runs"] == 3 for row in report["rows"])
    assert (tmp_path / "bars.svg").read_bytes().startswith(b"<?xml")


def test_another_decoding_is_found_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(images, "read_image", lambda path: cv2.imread(str(path)) ^ 1)
    assert main(["benchmark", "--bench", "decode", "--input", "64x48"]) == 1
    assert "pixels differ by 1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["op", "e2e", "profile", "train"])
def test_every_kind_of_measurement(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, extra = tmp_path / "small.toml", ["--input", "96x64"] if kind == "e2e" else []
    config.write_text('base = ["setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes"]\n[inference]\nscale = [96, 64]\n')
    code = main(["benchmark", str(config), *SMALL, "--bench", kind, "--against", "plain", "--no-memory", *extra])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.strip()


def test_operators_make_no_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "bars.png"
    assert main(["benchmark", "setr_naive-tiny", *SMALL, "--bench", "profile", "--plot", str(plot)]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    assert not plot.exists()


def test_a_chart_of_another_kind_is_refused_before_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--plot", "bars.txt"]) == 2
    assert "'bars.txt' does not end in .png or .svg" in capsys.readouterr().err


def test_an_impossible_baseline_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *SMALL, "--against", "faster"]) == 2
    assert "faster" in capsys.readouterr().err


@pytest.mark.parametrize("difference", [3e-4, float("nan")])
def test_implementations_that_disagree_get_no_figures(difference: float) -> None:
    agreement = Agreement("model", "plain", "float32", "logits", difference, 2e-4, "largest absolute")
    with pytest.raises(CheckFailed, match="do not agree"):
        agreement.require()


def test_a_wrong_baseline_is_found_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(baseline, "plain_attention", lambda *given: 1.01 * right(*given))
    right = plain_attention
    assert main(["benchmark", "setr_naive-tiny", *SMALL, "--against", "plain", "--no-memory"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "do not agree" in captured.err
