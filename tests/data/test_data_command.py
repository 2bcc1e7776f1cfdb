"""`dgmn2 data`: what a user types and what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dgmn2cli.cli.data import data
from dgmn2cli.cli.options import attach_global_options
from dgmn2cli.data.cityscapes import CLASSES
from dgmn2cli.errors import ConfigError, DataError


def run(*arguments: str) -> Result:
    return CliRunner().invoke(attach_global_options(data), list(arguments))


def test_synth_then_check(tmp_path: Path) -> None:
    root = str(tmp_path / "streets")
    made = run("synth", root, "--images", "4", "--size", "128x64", "--seed", "3")
    assert made.exit_code == 0, made.output
    assert made.stdout == f"{root}: 3 in train (19 classes), 1 in val (19 classes)\n"
    assert len(list(Path(root).glob("leftImg8bit/*/*/*.png"))) == 4

    checked = run("check", root, "--json")
    assert checked.exit_code == 0, checked.output
    reports = json.loads(checked.stdout)
    assert [(report["split"], report["pairs"]) for report in reports] == [("train", 3), ("val", 1)]
    assert len(reports[0]["classes"]) == 19

    shown = run("check", root, "--split", "val", "--quick")
    assert shown.exit_code == 0
    assert "val: 1 pairs, 0 faulty" in shown.stdout
    assert "bicycle" in shown.stdout
    assert "train" not in shown.stdout.splitlines()[0]


def test_faults_are_named_and_the_report_still_comes(make_cityscapes: Callable[..., Path]) -> None:
    root = make_cityscapes()
    broken = sorted((root / "leftImg8bit").rglob("*.png"))[1]
    broken.write_bytes(broken.read_bytes()[:100])
    result = run("check", str(root))
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 6
    assert str(broken) in result.exception.faults[0]
    assert "4 pairs, 1 faulty" in result.stdout


def test_samples_of_data_that_a_configuration_describes(tmp_path: Path, make_cityscapes: Callable[..., Path]) -> None:
    root, own = make_cityscapes(1, splits=("train",)), tmp_path / "own.toml"
    own.write_text(
        f"""base = "fpn_dgmn2_tiny_4x2_769x769_40k_cityscapes"
        augment = {{scale = [40, 24], crop = 24}}
        [data]
        kind = "folder"
        classes = {json.dumps(CLASSES)}
        train_images = "leftImg8bit/train"
        train_labels = "gtFine/train"
        image_suffix = "_leftImg8bit.png"
        label_suffix = "_gtFine_labelTrainIds.png"
        """
    )
    result = run("browse", str(root), "-m", str(own), "-o", str(tmp_path / "sheet.png"))
    assert result.exit_code == 0, result.exception
    assert "ulm_000000_000019" in result.stdout


def test_wrong_requests(tmp_path: Path) -> None:
    for arguments, kind in (
        (("check", str(tmp_path / "none")), DataError),
        (("synth", str(tmp_path / "x"), "--images", "1"), ConfigError),
        (("synth", str(tmp_path / "x"), "--seed", "-1"), ConfigError),
    ):
        assert isinstance(run(*arguments).exception, kind)
    assert not (tmp_path / "x").exists()
    assert run("browse", str(tmp_path / "none"), "-o", "sheet.jpg").exit_code == 2  # its ending, before the data


@pytest.mark.parametrize("command", ["check", "synth"])
def test_help(command: str) -> None:
    assert "DIR" in run(command, "--help").stdout
