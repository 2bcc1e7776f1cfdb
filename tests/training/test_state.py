"""A saved state is whole, believed only if intact, and there at every moment, however a save is cut short."""

import errno
import os
import signal

import pytest
import torch
from train_children import forkserver, killed_save, small_state

from dgmn2cli.checkpoint.weights import read_checkpoint
from dgmn2cli.errors import ConfigError, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.training.report import Best
from dgmn2cli.training.state import (
    CheckpointStore,
    TrainState,
    digest,
    load_state,
    require_no_run,
    require_same_run,
    save_state,
)

META = {"CLASSES": ["a", "b"], "PALETTE": [[1, 2, 3], [4, 5, 6]], "config": "x = 1\n"}


def same(a, b):
    return digest(dict(a)) == digest(dict(b))


def test_round_trip_is_exact(tmp_path):
    state = small_state(7, average=True, best=Best(0.25, 5))
    path = save_state(tmp_path / "x.pth", state, META)
    read = load_state(path)
    assert (read.iteration, read.best, read.validated, read.log_bytes) == (7, Best(0.25, 5), True, 70)
    assert same(read.weights, state.weights)
    assert same(read.average, state.average)
    assert digest(read.optimizer) == digest(state.optimizer)
    assert read_checkpoint(path).meta["CLASSES"] == ["a", "b"]


def test_the_format_is_the_published_one_and_the_weights_are_those_to_use(tmp_path):
    state = small_state(3, average=True)
    content = torch.load(save_state(tmp_path / "x.pth", state, META), weights_only=True)
    assert list(content)[:2] == ["meta", "state_dict"]
    assert set(content) == {"meta", "state_dict", "optimizer", "training"}
    assert content["meta"]["iter"] == 3
    assert same(content["state_dict"], state.average)
    assert set(content["optimizer"]) == {"state", "param_groups"}


@pytest.mark.parametrize("where", ["weights", "average", "moments"])
def test_what_is_not_finite_is_not_saved(tmp_path, where):
    state = small_state(1, average=True)
    target = {
        "weights": state.weights["weight"], "average": state.average["weight"],
        "moments": state.optimizer["state"][0]["exp_avg_sq"],
    }[where]  # fmt: skip
    target[1] = float("inf")
    with pytest.raises(NonFiniteError):
        save_state(tmp_path / "x.pth", state, META)
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_change_is_noticed(tmp_path):
    path = save_state(tmp_path / "x.pth", small_state(2), META)
    good = torch.load(path, weights_only=True)

    def edited(change):
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "y.pth")
        return tmp_path / "y.pth"

    def moment(content):
        content["optimizer"]["state"][0]["exp_avg"][0] += 1e-7

    def bias(content):
        content["state_dict"]["bias"] = content["state_dict"]["bias"].view(1, -1)

    changes = [
        moment,
        bias,
        lambda c: c["meta"].update(iter=3),
        lambda c: c["training"].update(log_bytes=21),
        lambda c: c["training"].update(digest="0" * 64),
        lambda c: c["training"].pop("digest"),
    ]
    assert load_state(edited(lambda content: None)).iteration == good["meta"]["iter"] == 2
    for change in changes:
        with pytest.raises(IntegrityError):
            load_state(edited(change))


def test_a_published_checkpoint_gives_weights_optimiser_and_iteration(tmp_path):
    state = small_state(9)
    torch.save({"meta": {"iter": 9}, "state_dict": dict(state.weights), "optimizer": state.optimizer}, tmp_path / "p")
    read = load_state(tmp_path / "p")
    assert (read.iteration, read.exact) == (9, False)
    for content in ({"state_dict": dict(state.weights)}, {"state_dict": {}, "optimizer": state.optimizer}):
        torch.save(content, tmp_path / "q")
        with pytest.raises(IntegrityError):
            load_state(tmp_path / "q")


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_names_and_pruning(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for iteration in range(1, 6):
        best = Best(0.5, 2) if iteration >= 2 else Best(0.1, 1)
        store.put(small_state(iteration, best=best), META, number=iteration != 3)
    assert names(store) == ["best.pth", "iter_000000004.pth", "iter_000000005.pth", "last.pth", "previous.pth"]
    found = {path.name: load_state(path).iteration for path in tmp_path.iterdir()}
    assert [found[name] for name in names(store)] == [2, 4, 5, 5, 4]
    assert store.last.samefile(tmp_path / "iter_000000005.pth")


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = CheckpointStore(tmp_path)
    for iteration in (1, 2):
        store.put(small_state(iteration, best=Best(0.1, 1)), META, number=True)
    assert names(store) == ["best.pth", "iter_000000001.pth", "iter_000000002.pth", "last.pth", "previous.pth"]
    assert load_state(store.best).iteration == 1
    assert load_state(tmp_path / "previous.pth").iteration == 1


def test_a_torn_newest_state_is_skipped_with_a_warning_and_never_becomes_the_previous_one(tmp_path):
    store, said = CheckpointStore(tmp_path), []
    for iteration in (1, 2, 3):
        store.put(small_state(iteration), META, number=False)
    data = store.last.read_bytes()
    store.last.write_bytes(data[: len(data) // 2])
    state = store.newest(said.append)
    assert state.iteration == 2
    assert len(said) == 1
    assert "last.pth" in said[0]
    assert load_state(store.last).iteration == 2
    store.put(small_state(4), META, number=False)
    assert load_state(tmp_path / "previous.pth").iteration == 2
    flipped = bytearray(data)
    flipped[data.index(small_state(3).weights["weight"].numpy().tobytes()) + 5] ^= 4
    for path in tmp_path.glob("*.pth"):
        path.unlink()
        path.write_bytes(flipped)
    with pytest.raises(IntegrityError, match="no checkpoint of the run is intact"):
        store.newest(said.append)
    assert CheckpointStore(tmp_path / "nothing").newest(said.append) is None


def test_a_full_disk_leaves_the_previous_state(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.put(small_state(1), META, number=False)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        store.put(small_state(2), META, number=True)
    monkeypatch.undo()
    assert names(store) == ["last.pth"]
    assert load_state(store.last).iteration == 1


def test_a_kill_at_every_system_call_of_a_save_leaves_an_intact_state(tmp_path):
    """The child ends itself with SIGKILL before and after the k-th call that changes the disk, for every k."""
    context, points = forkserver(), 0
    while True:
        folder = tmp_path / str(points)
        store = CheckpointStore(folder, keep=1)
        for iteration in (1, 2):
            store.put(small_state(iteration, best=Best(0.1, 1)), META, number=True)
        child = context.Process(target=killed_save, args=(folder, points))
        child.start()
        child.join(60)
        store.clear()
        found = store.newest(lambda line: pytest.fail(line))
        assert found.iteration in (2, 3)
        assert not [name for name in names(store) if name.startswith(".") or name == "next.pth"]
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        store.name_newest(found, number=True)
        assert load_state(folder / f"iter_{found.iteration:09d}.pth").iteration == found.iteration
        assert load_state(store.best).iteration == (3 if found.iteration == 3 else 1)
        store.put(small_state(4, best=Best(0.1, 1)), META, number=False)
        assert load_state(store.last).iteration == 4
        assert load_state(folder / "previous.pth").iteration == found.iteration
        points += 1
    assert found.iteration == 3
    assert points >= 20


def test_another_configuration_and_another_run_are_refused(tmp_path):
    require_same_run([], force=False, where=tmp_path)
    require_same_run(["optim.lr: 1 -> 2"], force=True, where=tmp_path)
    with pytest.raises(ConfigError) as caught:
        require_same_run(["optim.lr: 1 -> 2"], force=False, where=tmp_path)
    assert caught.value.fault_lines() == ["optim.lr: 1 -> 2"]
    store = CheckpointStore(tmp_path / "checkpoints")
    require_no_run(store)
    store.put(TrainState(0, {"w": torch.ones(1)}, {"state": {}, "param_groups": []}), {}, number=False)
    with pytest.raises(ConfigError, match="already"):
        require_no_run(store)
