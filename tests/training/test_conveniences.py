"""Early stopping, the measured batch size, every loss and the loggers in whole trainings, interrupted ones, too."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest
import torch
from small_trainings import Watcher, outcome, small_request

from dgmn2cli.cli.options import LOGGERS, LOSSES
from dgmn2cli.config import OptimConfig, config_schema, load_config
from dgmn2cli.distributed.group import Group
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.evaluate import EvalReport
from dgmn2cli.ops import resolve
from dgmn2cli.runtime import PeakMeter, available_memory, machine_memory
from dgmn2cli.training import batch_size, logs, loop, plan
from dgmn2cli.training.optim import poly_lr
from dgmn2cli.training.plan import plan_training
from dgmn2cli.training.run import train
from dgmn2cli.training.state import load_state

NAIVE = "setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes"
TWO = {"train.iters": 2, "train.val_every": 0, "train.save_every": 0}
CPU = torch.device("cpu")


def request(data, out, settings=None, **others):
    return small_request(data, out, model=NAIVE, settings={**TWO, **(settings or {})}, **others)


def interrupted(asked, step: int) -> None:
    """Trains, with a Ctrl-C during step `step`; the state is that after it."""

    def on_step(result) -> None:
        if result.iteration == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(asked, Watcher(on_step=on_step))


def resumed(asked):
    return train(replace(asked, resume="auto"), Watcher())


PATIENT = {"train.iters": 9, "train.val_every": 1, "train.patience": 2}


MEANS = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.3, 5: 0.9}
KNOWN: dict[bool, EvalReport] = {}  # with and without analysis


@pytest.fixture
def found(monkeypatch):
    """Evaluations cost nothing after the first one: that after N steps finds `MEANS[N]`. Whether each was analysed."""
    real, analysed = loop.evaluate, {}

    def validate(segmenter, *args, analysis=False, **kwargs):
        if analysis not in KNOWN:
            KNOWN[analysis] = real(segmenter, *args, analysis=analysis, **kwargs)
        steps = int(segmenter.info.checkpoint.split()[1])
        analysed[steps], report = analysis, KNOWN[analysis]
        return replace(report, scores=replace(report.scores, mean_iou=MEANS[steps]))

    monkeypatch.setattr(loop, "evaluate", validate)
    monkeypatch.setattr(loop.Loop, "_show", lambda self, work: None)
    return analysed


def test_a_training_stops_when_its_patience_is_over_and_so_does_a_resumed_one(streets, tmp_path, found):
    whole = request(streets, tmp_path / "whole", PATIENT)
    report = train(whole, Watcher())
    assert (report.iterations, report.best.iteration, report.mean_iou) == (4, 2, 0.3), "as good is not better"
    assert found == {1: False, 2: False, 3: False, 4: True}
    assert any("Stopped early" in note for note in report.notes)
    assert json.loads(whole.folder.evaluation.read_text())["calibration"] is not None
    cut = request(streets, tmp_path / "cut", PATIENT)
    interrupted(cut, 3)
    interrupted(replace(cut, resume="auto"), 4)  # before its evaluation
    again = resumed(cut)
    assert (again.iterations, again.best) == (4, report.best)
    assert outcome(cut.out) == outcome(whole.out)
    assert resumed(whole).iterations == 4, "nothing is left"
    longer = request(streets, whole.out, {**PATIENT, "train.patience": 3, "train.iters": 5}, resume="auto", force=True)
    assert train(longer, Watcher()).best.iteration == 5


def test_without_patience_all_steps_are_made(streets, tmp_path, found):
    report = train(request(streets, tmp_path / "r", {**PATIENT, "train.iters": 5, "train.patience": 0}), Watcher())
    assert (report.iterations, report.best.iteration) == (5, 5)
    assert not any("Stopped early" in note for note in report.notes)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("focal", "dice"))) for kind in LOSSES[1:]]
)
def test_a_resumed_training_with_any_loss_is_exact(kind, streets, tmp_path, found):
    settings = {"loss.kind": kind, "loss.ohem_min_kept": 100, "train.class_weights_from": "auto", "optim.warmup": 2}
    whole, cut = (request(streets, tmp_path / name, settings) for name in ("whole", "cut"))
    train(whole, Watcher())
    interrupted(cut, 1)
    resumed(cut)
    assert outcome(cut.out) == outcome(whole.out)
    plain = request(streets, cut.out, {**settings, "loss.kind": "ce"}, resume="auto")
    with pytest.raises(ConfigError) as caught:
        train(plain, Watcher())
    assert [line.split(":")[0] for line in caught.value.fault_lines()] == ["loss.kind"]


def test_the_measured_batch_size_is_the_runs_from_then_on(streets, tmp_path, monkeypatch, found):
    monkeypatch.setattr(batch_size, "available_memory", lambda: 10**12)
    whole, cut = (request(streets, tmp_path / name, {"train.batch_size": 0}) for name in ("whole", "cut"))
    report = train(whole, Watcher())
    assert (report.effective_batch, load_config(whole.folder.config).train.batch_size) == (4, 4), "there are 4 images"
    interrupted(cut, 1)
    monkeypatch.setattr(batch_size, "available_memory", lambda: 0)
    assert resumed(cut).effective_batch == 4
    assert outcome(cut.out) == outcome(whole.out)
    assert plan_training(request(streets, tmp_path / "new", {"train.batch_size": 0}), Watcher()).batch_size == 1


def test_a_plan_is_not_misled_by_a_few_slow_steps(streets, tmp_path, monkeypatch):
    steps = [50.0, 2.0, 9.0, 2.0]  # the first one warms up
    stamps = iter([stamp for i in range(len(steps)) for stamp in (sum(steps[:i]), sum(steps[: i + 1]))])
    monkeypatch.setattr(plan, "_now", lambda group: next(stamps))
    found = plan_training(request(streets, tmp_path / "new", {"train.iters": 7}), Watcher())
    assert (found.seconds_per_step, found.training_seconds) == (2.0, 14.0)
    assert next(stamps, None) is None


def test_the_batch_size_fits_the_memory_on_a_cpu(streets, monkeypatch):
    free, backend = 1 << 30, resolve("auto", CPU, torch.float32)
    monkeypatch.setattr(batch_size, "available_memory", lambda: free)
    config = request(streets, streets / "none", {"augment.crop": 96}).config
    alone = Group(0, 1, CPU)
    images = batch_size._on_cpu(config, backend, alone, 1, 10**6)
    with PeakMeter(CPU) as meter:
        batch_size._try(batch_size._stepper(config, backend, alone), images)
    assert meter.peak is not None
    assert 0.3 * free < meter.peak < free
    assert 1 <= batch_size._on_cpu(config, backend, alone, 2, 10**6) < images
    assert 0 < available_memory() <= machine_memory()


def test_the_batch_size_is_tried_on_a_gpu(streets, tmp_path, monkeypatch):
    config = request(streets, tmp_path / "none").config
    tried = []

    def attempt(stepper, images: int) -> None:
        tried.append(images)
        if images > 10:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(batch_size, "_try", attempt)
    assert batch_size._on_gpu(config, "reference", Group(0, 1, CPU), 1, 100) == 8
    assert tried == [2, 4, 8, 16, 12, 10, 11]
    assert batch_size._on_gpu(config, "reference", Group(0, 1, CPU), 1, 6) == 6
    for most in range(1, 12):
        for limit in range(1, 14):
            assert batch_size.largest(lambda images, limit=limit: images <= limit, most) == min(most, limit)

    def broken(stepper, images: int) -> None:
        raise RuntimeError("a fault of another kind")

    monkeypatch.setattr(batch_size, "_try", broken)
    with pytest.raises(RuntimeError, match="another kind"):
        batch_size._on_gpu(config, "reference", Group(0, 1, CPU), 1, 6)
    monkeypatch.setattr(batch_size, "can_measure", lambda device: False)
    with pytest.raises(ConfigError, match="batch-size"):
        plan_training(request(streets, tmp_path / "none", {"train.batch_size": 0}), Watcher())
    assert not (tmp_path / "none").exists()


def test_weights_and_biases_changes_no_number_and_goes_on(streets, tmp_path, monkeypatch, found):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    plain, shown = request(streets, tmp_path / "plain"), request(streets, tmp_path / "shown", {"train.logger": "wandb"})
    train(plain, Watcher())
    interrupted(shown, 1)
    report = resumed(shown)
    assert (report.iterations, outcome(shown.out)[1]) == (2, outcome(plain.out)[1])
    one, other = (load_state(asked.out / "checkpoints" / "last.pth") for asked in (plain, shown))
    assert all(torch.equal(value, other.weights[key]) for key, value in one.weights.items())
    identity = (shown.out / "wandb" / "run-id").read_text()
    records = sorted((shown.out / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert len(records) == 2
    assert b"train/loss" in records[0].read_bytes()
    assert b"val/IoU road" in records[1].read_bytes()
    train(request(streets, shown.out, resume="auto"), Watcher())  # without it


def test_a_logger_that_is_not_installed_is_named_and_one_that_fails_ends_nothing(streets, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(logs.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ResourceError, match=r"dgmn2cli\[wandb\]") as caught:
            train(request(streets, tmp_path / "r", {"train.logger": "wandb"}), Watcher())
    assert caught.value.exit_code == 5
    assert not (tmp_path / "r").exists()

    def full(self, figures, iteration) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(logs.TensorBoard, "scalars", full)
    watcher = Watcher()
    assert train(request(streets, tmp_path / "r"), watcher).iterations == 2
    assert [note for note in watcher.notes if "disk is full" in note] == [
        "TensorBoard gets no more figures: the disk is full"
    ]


def test_the_rate_rises_in_the_warm_up_and_meets_the_fall():
    settings, plain = OptimConfig(lr=1e-3, warmup=4), OptimConfig(lr=1e-3)
    rates = [poly_lr(settings, i, 10) for i in range(10)]
    assert rates[:3] == pytest.approx([poly_lr(plain, i, 10) * (i + 1) / 4 for i in range(3)], rel=1e-12)
    assert rates[3:] == [poly_lr(plain, i, 10) for i in range(3, 10)]


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("loss.kind=lovasz", "loss.kind"),
        ("loss.ohem_threshold=0", "loss.ohem_threshold"),
        ("loss.ohem_min_kept=-1", "loss.ohem_min_kept"),
        ("loss.focal_gamma=0.5", "loss.focal_gamma"),
        ("loss.dice_weight=-1", "loss.dice_weight"),
        ("optim.warmup=50000", "optim.warmup"),
        ("train.patience=-1", "train.patience"),
        ("train.batch_size=-1", "train.batch_size"),
        ("train.batch_size=auto", "train.batch_size"),
        ("train.logger=mlflow", "train.logger"),
    ],
)
def test_impossible_settings_are_refused_by_name(setting, fault):
    with pytest.raises(ConfigError) as caught:
        load_config(NAIVE, [setting])
    assert len(caught.value.faults) == 1
    assert fault in caught.value.faults[0]


def test_patience_needs_evaluations():
    with pytest.raises(ConfigError) as caught:
        load_config(NAIVE, ["train.patience=2", "train.val_every=0"])
    assert ["train.patience" in line for line in caught.value.faults] == [True]


def test_the_command_line_has_the_choices_of_the_schema():
    sections = config_schema()["$defs"]
    assert tuple(sections["LossConfig"]["properties"]["kind"]["enum"]) == LOSSES
    assert tuple(sections["TrainConfig"]["properties"]["logger"]["enum"]) == LOGGERS
