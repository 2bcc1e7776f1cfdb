"""What a resumed training may not change without a word, and what may not cost it its saves."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from small_trainings import Watcher, outcome, small_request, write_streets
from streets import segmenter

from dgmn2cli.config import load_config
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import hash_file
from dgmn2cli.training import loop
from dgmn2cli.training.initial_weights import class_weights_from
from dgmn2cli.training.prepare import require_normal_batches
from dgmn2cli.training.run import train
from dgmn2cli.training.state import load_state
from dgmn2cli.training.validate import Stopped, write_samples

NAIVE = "setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes"
TWO = {"train.iters": 2, "train.save_every": 1, "train.val_every": 0}


def request(data, out, settings=None, **others):
    return small_request(data, out, model=NAIVE, settings={**TWO, **(settings or {})}, **others)


@pytest.fixture(scope="module")
def whole(streets, tmp_path_factory):
    """The folder of a run of two steps on one thread."""
    before = torch.get_num_threads()
    asked = request(streets, tmp_path_factory.mktemp("whole") / "r", threads=1)
    train(asked, Watcher())
    torch.set_num_threads(before)
    return asked.out


@pytest.fixture
def half(whole, tmp_path):
    """The same run after one step."""
    shutil.copytree(whole, tmp_path / "half")
    for name in ("last", "previous", "best", "iter_000000002"):
        (tmp_path / "half" / "checkpoints" / f"{name}.pth").unlink()
    return tmp_path / "half"


def test_threads_are_restored_and_a_damaged_line_of_the_log_costs_a_note(streets, whole, half):
    log = half / "log.jsonl"
    log.write_bytes(b"[" * 20 + log.read_bytes()[20:])
    watcher, before = Watcher(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(request(streets, half, resume="auto"), watcher)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert outcome(half)[0] == outcome(whole)[0]
    assert any("1 damaged lines" in note for note in watcher.notes)


def test_other_threads_other_data_and_another_torch_are_refused_by_name(streets, half, tmp_path, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        train(request(streets, half, resume="auto", threads=2), Watcher())
    assert caught.value.fault_lines() == ["threads: 1 -> 2"]
    more = write_streets(tmp_path / "more", train=5)
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(ConfigError) as caught:
        train(request(more, half, resume="auto", threads=1), Watcher())
    names = [line.split(":")[0] for line in caught.value.fault_lines()]
    assert names == ["torch", "data"]
    monkeypatch.undo()
    monkeypatch.setattr(SegmentationSet, "meaning", "of another dataset.toml")
    with pytest.raises(ConfigError) as caught:
        train(request(streets, half, resume="auto", threads=1), Watcher())
    assert [line.split(":")[0] for line in caught.value.fault_lines()] == ["labels"]
    assert load_state(half / "checkpoints" / "last.pth").iteration == 1


def test_another_runs_checkpoint_mixes_no_runs(streets, whole, half, tmp_path):
    last = str(whole / "checkpoints" / "last.pth")
    log = (half / "log.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="another run's checkpoint"):
        train(request(streets, half, resume=last, threads=1), Watcher())
    assert (half / "log.jsonl").read_bytes() == log
    with pytest.raises(ConfigError) as caught:
        train(request(streets, tmp_path / "c", {"optim.lr": 1e-2}, resume=last), Watcher())
    assert caught.value.fault_lines() == ["optim.lr: 0.0001 -> 0.01"]
    assert not (tmp_path / "c").exists()
    report = train(request(streets, tmp_path / "e", resume=last), Watcher())
    assert report.best.iteration == report.resumed_at == 2
    assert load_state(report.best_checkpoint).iteration == 2
    written = json.loads(report.evaluation.read_text())["run"]
    assert (written["checkpoint"], written["sha256"]) == (str(report.checkpoint), hash_file(report.checkpoint))


def test_an_earlier_checkpoint_of_a_run_goes_on_elsewhere(streets, whole, tmp_path):
    """In the run's own folder the checkpoints and the records of the later steps would be another course's."""
    shutil.copytree(whole, tmp_path / "r")
    before = {path: hash_file(path) for path in (tmp_path / "r").rglob("*") if path.is_file() and path.name != "lock"}
    first = tmp_path / "r" / "checkpoints" / "iter_000000001.pth"
    with pytest.raises(ConfigError, match="it is of step 1, the newest is of step 2"):
        train(request(streets, tmp_path / "r", resume=str(first)), Watcher())
    assert {path: hash_file(path) for path in before} == before
    again = train(request(streets, tmp_path / "r", resume=str(first.with_name("iter_000000002.pth"))), Watcher())
    assert (again.resumed_at, again.best.iteration) == (2, 2)
    elsewhere = train(request(streets, tmp_path / "e", resume=str(first)), Watcher())
    assert (elsewhere.resumed_at, elsewhere.iterations) == (1, 2)
    weights = [load_state(out / "checkpoints" / "last.pth").weights for out in (tmp_path / "e", whole)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("resume", ["", "auto"])
def test_a_folder_with_somebodys_files_is_left_alone(streets, tmp_path, resume):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        train(request(streets, tmp_path / "mine", resume=resume), Watcher())
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]


def test_a_failing_evaluation_does_not_cost_the_save_that_was_due(streets, half, monkeypatch):
    def fail(*given, **options):
        raise DataError("an image is gone")

    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(DataError, match="is gone"):
        train(request(streets, half, resume="auto"), Watcher())
    state = load_state(half / "checkpoints" / "last.pth")
    assert (state.iteration, state.validated) == (2, False)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "write_samples", fail)
    watcher = Watcher()
    report = train(request(streets, half, resume="auto"), watcher)
    assert any("an image is gone" in note for note in watcher.notes)
    assert load_state(report.best_checkpoint).iteration == 2


def test_a_crop_of_one_value_per_channel_is_refused_with_one_that_works():
    config = load_config(NAIVE, ["augment.crop=8", "train.batch_size=1"])
    with pytest.raises(ConfigError, match="one value per channel") as caught:
        require_normal_batches(config, 1)
    enough = int(caught.value.hint.split()[2])
    assert 8 < enough <= 32
    require_normal_batches(load_config(NAIVE, [f"augment.crop={enough}", "train.batch_size=1"]), 1)
    require_normal_batches(load_config(NAIVE, ["augment.crop=8", "train.batch_size=2"]), 1)


def test_class_weights_wait_for_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot use the class weights"):
        class_weights_from(str(tmp_path / "pipe"), (1.0, 1.0), ("a", "b"))


def test_a_stop_does_not_wait_for_the_sample_sheet(streets, tmp_path):
    data, made = open_dataset(streets, "val"), segmenter()
    looks = 0

    def check():
        nonlocal looks
        looks += 1
        if looks == 2:
            raise Stopped("the training was told to stop")

    with pytest.raises(Stopped):
        write_samples(tmp_path / "x.png", made, data, check)
    assert looks == 2
    assert not (tmp_path / "x.png").exists()
