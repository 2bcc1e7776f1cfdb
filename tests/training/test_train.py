"""A training from the first step to the final evaluation: what it writes, how it ends, how it goes on."""

import errno
import json
import math
import os
import shutil
import signal
from dataclasses import replace

import cv2
import pytest
import torch
from small_trainings import Watcher, outcome, small_request, write_streets
from train_children import forkserver, hold_folder

from dgmn2cli.cli import main
from dgmn2cli.config import config_difference, load_config
from dgmn2cli.data import loaders
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.cityscapes import CLASSES
from dgmn2cli.data.images import write_png
from dgmn2cli.errors import ConfigError, DataError, Dgmn2Error, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.evaluate import evaluate
from dgmn2cli.inference.load import resolve
from dgmn2cli.training.folder import lock_folder
from dgmn2cli.training.logs import read_log
from dgmn2cli.training.run import train
from dgmn2cli.training.state import load_state


class Ended(Exception):  # noqa: N818
    """What the test's own signal handler raises."""


@pytest.fixture(scope="module")
def unbroken(streets, tmp_path_factory):
    """A run of four steps, evaluated and saved after every second one: request, report, watcher."""
    request, watcher = small_request(streets, tmp_path_factory.mktemp("run") / "r"), Watcher()
    return request, train(request, watcher), watcher


def test_the_run_folder_holds_everything(unbroken, streets):
    request, report, watcher = unbroken
    out = request.out
    assert {path.name for path in out.iterdir()} == {
        "checkpoints", "config.toml", "curves.png", "environment.json", "evaluation.html", "evaluation.json",
        "events.jsonl", "lock", "log.jsonl", "samples", "tensorboard",
    }  # fmt: skip
    assert {path.name for path in (out / "checkpoints").iterdir()} == {
        "best.pth", "iter_000000002.pth", "iter_000000004.pth", "last.pth", "previous.pth",
    }  # fmt: skip
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["iter_000000002.png", "iter_000000004.png"]
    for picture in (out / "curves.png", *(out / "samples").iterdir()):
        assert min(cv2.imread(str(picture)).shape[:2]) > 100
    assert list((out / "tensorboard").glob("events.*"))
    assert config_difference(load_config(out / "config.toml"), request.config) == []
    environment = json.loads((out / "environment.json").read_text())
    assert environment["processes"] == 1
    assert environment["op_backend"] in ("native", "reference")
    assert "Effective batch 2" in " ".join(watcher.notes)
    assert [step.iteration for step in watcher.steps] == [1, 2, 3, 4]
    assert report.iterations == 4
    assert report.effective_batch == 2


def test_the_log_has_every_step_and_evaluation(unbroken):
    request, report, watcher = unbroken
    log = read_log(request.out / "log.jsonl")[0]
    assert [record["iter"] for record in log] == [1, 2, 2, 3, 4, 4]
    steps = [record for record in log if "loss" in record]
    assert [step["lr"] for step in steps] == [1e-4 * (1 - i / 4) ** 0.9 for i in range(4)]
    assert steps[-1]["loss"] == report.loss
    evaluations = [record for record in log if "miou" in record]
    assert [(record["iter"], record["miou"], record["best"]) for record in evaluations] == watcher.evaluations
    assert report.best.miou == max(record["miou"] for record in evaluations)


def test_the_final_evaluation_is_what_eval_measures_of_the_checkpoint(unbroken, streets):
    request, report, _ = unbroken
    written = json.loads((request.out / "evaluation.json").read_text())
    segmenter = resolve(str(request.out / "config.toml"))(checkpoint=report.checkpoint, device="cpu")
    measured = evaluate(segmenter, open_dataset(streets, "val"))
    assert written["confusion"] == [list(row) for row in measured.confusion]
    assert written["run"]["sha256"] == measured.run.sha256
    assert written["scores"]["mean_iou"] == report.mean_iou == measured.scores.mean_iou


def test_a_trainings_own_evaluation_is_verified_with_the_run_folders_configuration(unbroken, capsys):
    request, report, _ = unbroken
    assert main(["verify", str(request.out / "evaluation.json"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["model"], answer["mean_iou"]) == (report.model, report.mean_iou)


def test_the_report_shows_itself_in_notebooks(unbroken):
    _, report, _ = unbroken
    shown = replace(report, model="<b>")._repr_html_()
    assert f"{100 * report.mean_iou:.2f} %" in shown
    assert "<b>: " not in shown
    assert "&lt;b&gt;: 4 steps" in shown


def test_the_checkpoint_has_the_published_format(unbroken):
    _, report, _ = unbroken
    content = torch.load(report.checkpoint, weights_only=True)
    assert content["meta"]["iter"] == 4
    assert tuple(content["meta"]["CLASSES"]) == CLASSES
    assert len(content["meta"]["PALETTE"]) == 19
    assert not any(key.startswith("module.") for key in content["state_dict"])
    assert "[optim]" in content["meta"]["config"]
    parameters = [key for key in content["state_dict"] if not key.endswith(("_mean", "_var", "_tracked"))]
    assert content["optimizer"]["param_groups"][0]["params"] == list(range(len(parameters)))
    for index, key in enumerate(parameters):  # the original resumes by this order
        assert content["optimizer"]["state"][index]["exp_avg"].shape == content["state_dict"][key].shape


def interrupted(request, number, *, in_step=None, in_evaluation=False):
    """Runs until a signal is sent to this process; how many steps were taken."""

    def on_step(step):
        if step.iteration == in_step:
            os.kill(os.getpid(), number)

    def on_part(what):
        if in_evaluation and what.startswith("evaluating"):
            os.kill(os.getpid(), number)

    def end(received, frame):
        raise Ended

    watcher = Watcher(on_step, on_part)
    former = signal.signal(number, end)
    try:
        with pytest.raises(Ended):
            train(request, watcher)
    finally:
        signal.signal(number, former)
    return watcher


@pytest.mark.parametrize(
    ("number", "moment", "taken"),
    [
        (signal.SIGTERM, {"in_step": 1}, 1),
        (signal.SIGINT, {"in_evaluation": True}, 2),
        pytest.param(signal.SIGTERM, {"in_step": 2}, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_it_at_the_step_boundary_and_the_resumed_run_is_equal(
    unbroken, streets, tmp_path, number, moment, taken
):
    request = small_request(streets, tmp_path / "r")
    watcher = interrupted(request, number, **moment)
    assert len(watcher.steps) == taken
    state = load_state(request.out / "checkpoints" / "last.pth")
    assert state.iteration == taken
    resumed = Watcher()
    report = train(small_request(streets, tmp_path / "r", resume="auto"), resumed)
    assert [step.iteration for step in resumed.steps] == list(range(taken + 1, 5))
    assert report.resumed_at == taken
    assert outcome(request.out) == outcome(unbroken[0].out)
    names = ("best.pth", "iter_000000002.pth", "iter_000000004.pth")
    for name in names:
        digests = [
            torch.load(out / "checkpoints" / name, weights_only=True)["training"]["digest"]
            for out in (request.out, unbroken[0].out)
        ]
        assert digests[0] == digests[1]


RICH = {
    "train.ema": True,
    "train.ema_decay": 0.5,
    "train.accumulate": 2,
    "train.batch_size": 1,
    "train.class_weights_from": "auto",
    "train.iters": 3,
    "train.val_every": 0,
    "train.save_every": 1,
    "train.keep": 1,
    "train.dtype": "bfloat16",
    "model.drop_path": 0.2,
}


def test_a_signal_ends_the_check_of_the_data(streets, tmp_path):
    """Which takes minutes where nothing is remembered of it; nothing is written yet."""

    def on_part(task):
        checked.append(task)
        os.kill(os.getpid(), signal.SIGINT)

    checked = []
    with pytest.raises(KeyboardInterrupt):
        train(small_request(streets, tmp_path / "r", cache=tmp_path / "cache"), Watcher(on_part=on_part))
    assert checked == ["checking train"]
    assert not (tmp_path / "r").exists()


def test_average_accumulation_weights_and_random_layers_resume_exactly_with_any_number_of_workers(streets, tmp_path):
    whole = small_request(streets, tmp_path / "whole", settings=RICH)
    train(whole, Watcher())
    part = small_request(streets, tmp_path / "part", settings={**RICH, "data.workers": 2})
    interrupted(part, signal.SIGTERM, in_step=2)
    train(small_request(streets, tmp_path / "part", settings=RICH, resume="auto"), Watcher())
    assert outcome(whole.out) == outcome(part.out)
    assert [path.name for path in sorted((part.out / "checkpoints").glob("iter*"))] == ["iter_000000003.pth"]
    state = load_state(whole.out / "checkpoints" / "last.pth")
    assert any(not torch.equal(state.weights[key], state.average[key]) for key in state.weights)
    resolved = load_config(whole.out / "config.toml").train
    assert len(resolved.class_weights) == 19
    assert resolved.class_weights_from == ""
    assert len(set(resolved.class_weights)) > 5


def test_a_frozen_backbone_stays_as_it_was(streets, tmp_path, unbroken):
    start = unbroken[1].checkpoint
    request = small_request(
        streets, tmp_path / "r", settings={"train.freeze_backbone": True, "train.iters": 2, "train.init": start}
    )
    train(request, Watcher())
    before = torch.load(start, weights_only=True)["state_dict"]
    content = torch.load(tmp_path / "r" / "checkpoints" / "last.pth", weights_only=True)
    after = content["state_dict"]
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("backbone."))
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    learning = [key for key in before if not key.startswith("backbone.") and key.endswith(("weight", "bias"))]
    assert set(learning) <= set(moved)
    assert len(content["optimizer"]["state"]) == len(learning)


def test_a_loss_that_is_not_finite_ends_it_without_a_checkpoint(streets, tmp_path):
    request = small_request(
        streets, tmp_path / "r", settings={"optim.lr": 1e30, "optim.power": 0, "train.save_every": 1, "train.iters": 9}
    )
    with pytest.raises(NonFiniteError) as caught:
        train(request, Watcher())
    error = caught.value
    assert error.exit_code == 7
    step = int(error.where.removeprefix("step "))
    assert "1e+30" in error.why
    assert "ulm_00000" in error.why
    saved = list((request.out / "checkpoints").glob("*.pth")) if (request.out / "checkpoints").exists() else []
    for path in saved:
        assert load_state(path).iteration < step


def test_ignored_pixels_only_give_loss_zero(tmp_path):
    root = write_streets(tmp_path / "data", train=2, val=1)
    for path in root.glob("gtFine/*/*/*.png"):
        write_png(path, cv2.imread(str(path), cv2.IMREAD_UNCHANGED) * 0 + 255)
    watcher = Watcher()
    report = train(small_request(root, tmp_path / "r", settings={"train.iters": 1}), watcher)
    assert report.loss == 0.0
    assert math.isnan(report.mean_iou)
    state = load_state(report.checkpoint)
    assert all(bool(value.isfinite().all()) for value in state.weights.values())


def test_a_picture_deleted_in_mid_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "KEPT", 0)  # of a small data set the decoded images would stay in memory
    root = write_streets(tmp_path / "data")
    victim = sorted(root.glob("leftImg8bit/train/*/*.png"))[3]
    watcher = Watcher(on_step=lambda step: victim.unlink(missing_ok=True))
    with pytest.raises(DataError, match=victim.name):
        train(small_request(root, tmp_path / "r"), watcher)


def test_faults_of_the_data_are_found_before_anything_is_written(tmp_path):
    root = write_streets(tmp_path / "data")
    labels = sorted(root.glob("gtFine/train/*/*.png"))
    write_png(labels[0], cv2.imread(str(labels[0]), cv2.IMREAD_UNCHANGED)[:10])
    write_png(labels[2], cv2.imread(str(labels[2]), cv2.IMREAD_UNCHANGED) * 0 + 77)
    with pytest.raises(DataError) as caught:
        train(small_request(root, tmp_path / "r"), Watcher())
    assert len(caught.value.faults) == 2
    assert not (tmp_path / "r").exists()


def test_a_full_disk_leaves_the_previous_checkpoint_and_the_run_goes_on_from_it(
    unbroken, streets, tmp_path, monkeypatch
):
    request = small_request(streets, tmp_path / "r")
    honest = torch.save

    def full(content, file):
        if content["meta"]["iter"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ResourceError, match="No space left") as caught:
        train(request, Watcher())
    monkeypatch.undo()
    assert caught.value.exit_code == 5
    assert load_state(request.out / "checkpoints" / "last.pth").iteration == 2
    assert not list((request.out / "checkpoints").glob(".*"))
    train(small_request(streets, tmp_path / "r", resume="auto"), Watcher())
    assert outcome(request.out) == outcome(unbroken[0].out)


def test_a_torn_newest_checkpoint_is_skipped_and_the_resumed_run_is_equal(unbroken, streets, tmp_path):
    shutil.copytree(unbroken[0].out, tmp_path / "r")
    last = tmp_path / "r" / "checkpoints" / "last.pth"
    data = last.read_bytes()
    last.unlink()
    last.write_bytes(data[:1_000_000])
    watcher = Watcher()
    train(small_request(streets, tmp_path / "r", resume="auto"), watcher)
    assert any("Skipped a damaged checkpoint" in note for note in watcher.notes)
    assert [step.iteration for step in watcher.steps] == [3, 4]
    assert outcome(tmp_path / "r") == outcome(unbroken[0].out)


def test_what_is_refused(unbroken, streets, tmp_path):
    out = unbroken[0].out
    before = outcome(out)
    with pytest.raises(ConfigError, match="already"):
        train(small_request(streets, out), Watcher())
    with pytest.raises(ConfigError) as caught:
        train(small_request(streets, out, settings={"optim.lr": 3e-4}, resume="auto"), Watcher())
    assert caught.value.fault_lines() == ["optim.lr: 0.0001 -> 0.0003"]
    with pytest.raises(ConfigError, match="nothing is left to train"):
        train(small_request(streets, out, settings={"train.iters": 3}, resume="auto", force=True), Watcher())
    with pytest.raises(ResourceError, match="not on disk") as caught:
        train(small_request(streets, tmp_path / "n", settings={"train.init": "imagenet"}, cache=tmp_path), Watcher())
    assert "dgmn2 download dgmn2_tiny" in caught.value.hint
    assert "--from scratch" in caught.value.hint
    with pytest.raises(ResourceError, match="no such file"):
        train(small_request(streets, tmp_path / "n", settings={"train.init": "x.pth"}), Watcher())
    with pytest.raises(ConfigError, match="num_classes=19"):
        train(small_request(streets, tmp_path / "n", settings={"model.num_classes": 5}), Watcher())
    with pytest.raises(ResourceError, match="not enough GPUs"):
        train(small_request(streets, tmp_path / "n", processes=2, device="auto"), Watcher())
    with pytest.raises(IntegrityError):
        train(small_request(streets, tmp_path / "n", resume=str(out / "curves.png")), Watcher())
    assert not (tmp_path / "n").exists()
    assert outcome(out) == before


@pytest.mark.parametrize("name", ["log.jsonl", "events.jsonl", "lock"])
def test_a_link_planted_in_the_run_folder_is_not_written_through(streets, tmp_path, name):
    (tmp_path / "r").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "r" / "lock").touch()
    (tmp_path / "r" / name).unlink(missing_ok=True)
    (tmp_path / "r" / name).symlink_to(tmp_path / "mine")
    watcher = Watcher()
    with pytest.raises(ResourceError, match=f"{name}.: a link is there, not a plain file. Remove it, or"):
        train(small_request(streets, tmp_path / "r"), watcher)
    assert watcher.steps == []
    assert (tmp_path / "mine").read_text() == "mine"


def test_links_in_a_circle_are_refused_before_the_first_step(unbroken, streets, tmp_path):
    """Where the checkpoints go, the whole run folder, and the checkpoint to go on from."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "lock").touch()
    for path in (tmp_path / "r" / "checkpoints", tmp_path / "circle"):
        path.symlink_to(path.name)
    kept = str(unbroken[0].out / "checkpoints" / "iter_000000002.pth")
    for out, resume in (("r", kept), ("circle", kept), ("r", "")):
        watcher = Watcher()
        with pytest.raises(ResourceError, match="is no folder"):
            train(small_request(streets, tmp_path / out, resume=resume), watcher)
        assert watcher.steps == []
    with pytest.raises(Dgmn2Error, match="circle"):
        train(small_request(streets, tmp_path / "new", resume=str(tmp_path / "circle")), Watcher())
    assert not (tmp_path / "new").exists()


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(streets, tmp_path):
    held, go = forkserver().Event(), forkserver().Event()
    child = forkserver().Process(target=hold_folder, args=(tmp_path / "r", held, go))
    child.start()
    assert held.wait(60)
    with pytest.raises(ResourceError, match=f"process {child.pid}"):
        train(small_request(streets, tmp_path / "r"), Watcher())
    child.kill()
    child.join()
    with lock_folder(tmp_path / "r"):
        pass


def test_another_configuration_by_force_and_a_resume_without_a_checkpoint(streets, tmp_path):
    settings = {"train.iters": 1, "train.val_every": 0, "train.save_every": 0}
    first = Watcher()
    train(small_request(streets, tmp_path / "r", settings=settings, resume="auto"), first)
    assert any("no checkpoint yet" in note for note in first.notes)
    longer = {**settings, "train.iters": 2}
    second = Watcher()
    report = train(small_request(streets, tmp_path / "r", settings=longer, resume="auto", force=True), second)
    assert [step.iteration for step in second.steps] == [2]
    assert any("train.iters: 1 -> 2" in note for note in report.notes)
    assert load_config(tmp_path / "r" / "config.previous.toml").train.iters == 1
    assert load_config(tmp_path / "r" / "config.toml").train.iters == 2


def test_a_checkpoint_of_the_original_system_goes_on(unbroken, streets, tmp_path):
    """Theirs counts an optimiser's steps in whole numbers, and knows other settings of a parameter group."""
    content = torch.load(unbroken[0].out / "checkpoints" / "iter_000000002.pth", weights_only=True)
    del content["training"]
    content["meta"] = {"epoch": 1, "iter": 2, "mmseg_version": "0.16.0", "CLASSES": CLASSES, "config": "x = dict()\n"}
    group = content["optimizer"]["param_groups"][0]
    old = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")}
    content["optimizer"]["param_groups"] = [{**old, "initial_lr": 1e-4}]
    for moments in content["optimizer"]["state"].values():
        moments["step"] = int(moments["step"])
    torch.save(content, tmp_path / "theirs.pth", _use_new_zipfile_serialization=False)
    watcher = Watcher()
    report = train(small_request(streets, tmp_path / "r", resume=str(tmp_path / "theirs.pth")), watcher)
    assert [step.iteration for step in watcher.steps] == [3, 4]
    assert any("another program's" in note for note in report.notes)
    # this program's generators depend on the step alone, so even this equals the unbroken run
    logs = [read_log(out / "log.jsonl")[0] for out in (tmp_path / "r", unbroken[0].out)]
    assert logs[0][0] == logs[1][3]
