"""The first weights of a training: a classifier's rows go to the classes of the same names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import stand_ins

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.inference.load import build_model
from dgmn2cli.training.initial_weights import CLASSIFIER, load_initial_weights

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("meta", [{"CLASSES": NAMES}, {"dataset_meta": {"classes": NAMES}}, {"classes": NAMES}, {}])
def test_names_are_those_of_any_mmsegmentation(tmp_path: Path, meta: dict[str, Any]) -> None:
    state = stand_ins(lambda: build_model("setr_naive-tiny", 3))
    path = write_checkpoint(tmp_path / "a.pth", state, meta)
    model: Any = build_model("setr_naive-tiny", 3)
    data: Any = SimpleNamespace(classes=("c", "a", "b"))
    notes = load_initial_weights(model, (path, None), data)
    rows = [2, 0, 1] if meta else [0, 1, 2]  # without names they are like the data's
    for key in CLASSIFIER:
        assert torch.equal(model.state_dict()[key], state[key][rows])
    assert any("copied by name (3 of 3)" in note for note in notes) == bool(meta)
