"""docs/tutorial.ipynb runs cell by cell, offline, in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CELLS = json.loads((Path(__file__).parent.parent / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_nothing_of_a_run_is_kept() -> None:
    assert len(CODE) >= 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in CODE)


@pytest.mark.slow
def test_cells_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGMN2_OFFLINE", "1")
    names: dict[str, Any] = {}
    for number, cell in enumerate(CODE):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    here = tmp_path / "tutorial"
    assert names["prediction"].ids.shape == (64, 128)
    assert names["prediction"].ids.dtype == np.uint8
    assert names["exported"].parity.largest < 1e-3
    assert 0 <= names["report"].scores.mean_iou <= 1
    assert {path.name for path in (here / "masks").iterdir()} == {"street_ids.png", "street_overlay.png"}
    assert {"protocol.json", "run.py", "window.onnx"} <= {path.name for path in (here / "graph").iterdir()}
    assert all(names[name]._repr_html_() for name in ("prediction", "explanation", "report"))
