"""`dgmn2cli.train`: what the command does, by one call."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_trainings import Watcher, outcome

import dgmn2cli
from dgmn2cli.cli import main
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.training.logs import read_log

SETTINGS = {
    "train.init": "scratch", "train.iters": 1, "train.batch_size": 1, "augment.crop": 64, "data.workers": 0,
    "augment.scale": (96, 64), "inference.scale": [96, 64], "inference.window": 64, "inference.stride": 48,
}  # fmt: skip
OPTIONS = (
    "--from", "scratch", "--max-iters", "1", "--batch-size", "1", "--crop", "64", "--workers", "0", "--scale", "96x64",
    "--window", "64", "--stride", "48", "--device", "cpu",
)  # fmt: skip


def test_it_does_what_the_command_does_and_goes_on(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watcher = Watcher()
    report = dgmn2cli.train("setr_naive-tiny", data=streets, settings=SETTINGS, device="cpu", observer=watcher)
    assert (report.out, report.model, report.iterations) == (Path("runs/setr_naive-tiny"), "setr_naive-tiny", 1)
    assert [step.iteration for step in watcher.steps] == [1]
    assert report.best.miou == read_log(report.out / "log.jsonl")[0][-1]["miou"]
    assert main(["train", "setr_naive-tiny", "--data-root", str(streets), "--out", "typed", *OPTIONS]) == 0
    assert outcome(report.out) == outcome(Path("typed"))
    with pytest.raises(ConfigError, match="there is a training in this folder already"):
        dgmn2cli.train("setr_naive-tiny", data=streets, settings=SETTINGS, device="cpu")

    longer = {"train.iters": 2}
    with pytest.raises(ConfigError, match="other settings") as refused:
        dgmn2cli.train(out="runs/setr_naive-tiny", settings=longer, resume=True, device="cpu")
    assert refused.value.fault_lines() == ["train.iters: 1 -> 2"]
    again = dgmn2cli.train(out="runs/setr_naive-tiny", settings=longer, resume=True, force=True, device="cpu")
    assert (again.resumed_at, again.iterations) == (1, 2)
    network = dgmn2cli.load(again.out / "config.toml", again.best_checkpoint, device="cpu")
    assert dgmn2cli.evaluate(network, streets).scores.mean_iou == again.best.miou


def test_what_is_refused(streets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key; did you mean 'optim\.lr'"):
        dgmn2cli.train("setr_naive-tiny", data=streets, out=tmp_path / "r", settings={"train.lr": 1})
    with pytest.raises(ConfigError, match="needs to know the run"):
        dgmn2cli.train(resume=True)
    with pytest.raises(ConfigError, match="there is no run to resume"):
        dgmn2cli.train(out=tmp_path, resume=True)
    with pytest.raises(ResourceError, match="the ImageNet weights are not on disk"):
        dgmn2cli.train(data=streets, out=tmp_path / "r", device="cpu", cache=str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), "3", True, 10**6])
@pytest.mark.parametrize("name", ["processes", "threads"])
def test_impossible_numbers_are_refused(name: str, wrong: object) -> None:
    with pytest.raises(ConfigError, match=name):
        dgmn2cli.train("setr_naive-tiny", **{name: wrong})  # type: ignore[arg-type]
