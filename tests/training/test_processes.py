"""Several processes train as one: the same weights as one process with the whole batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from small_trainings import FPN, SMALL, Watcher, small_request
from train_children import forkserver, three_steps

from dgmn2cli.errors import DistributedError
from dgmn2cli.files import create_part
from dgmn2cli.training.run import train

NAIVE = "setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes"


def steps_of(folder: Path, data: Path, model: str, world: int, batch: int, **settings: object) -> dict:
    """Weights and losses after three float64 steps of `world` processes."""
    folder.mkdir()
    values = {**SMALL, "data.root": str(data), "train.batch_size": batch, **settings}
    children = [
        forkserver().Process(target=three_steps, args=(folder, model, values, rank, world)) for rank in range(world)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    found = [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(world)]
    for other in found[1:]:
        assert other["losses"] == found[0]["losses"]
        assert all(torch.equal(other["state"][key], value) for key, value in found[0]["state"].items())
    return found[0]


@pytest.mark.parametrize("model", [FPN, pytest.param(NAIVE, marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_the_whole_batch(streets, tmp_path, model):
    alone = steps_of(tmp_path / "alone", streets, model, 1, 2)
    both = steps_of(tmp_path / "both", streets, model, 2, 1)
    assert alone["losses"] == pytest.approx(both["losses"], abs=1e-5)
    assert all(value.dtype == torch.float64 for value in both["state"].values() if value.is_floating_point())
    apart = {key: float((both["state"][key] - value).abs().max()) for key, value in alone["state"].items()}
    assert max(apart.values()) < 1e-5
    moved = [key for key, value in alone["state"].items() if not torch.equal(value, alone["first"][key])]
    assert len(moved) == len(alone["state"]), "everything learns or counts"


def test_a_launch_that_lost_a_process_leaves_no_unfinished_file(streets, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    left = folder / ".next.pth.1.abcdefgh.part"
    left.write_bytes(b"half a checkpoint")
    kept, descriptor = create_part(folder, ".last.pth")  # somebody is writing it

    def lose(*_):
        raise DistributedError("process 1 of 2 died")

    monkeypatch.setattr("dgmn2cli.training.run.launch", lose)
    with pytest.raises(DistributedError):
        train(small_request(streets, tmp_path / "run", processes=2), Watcher())
    os.close(descriptor)
    assert (left.exists(), kept.exists()) == (False, True)
