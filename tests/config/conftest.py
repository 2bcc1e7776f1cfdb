"""What the configuration tests share: the faults of a refused file, and a folder of all models' mmcv files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from mmcv_samples import DATA, HEAD_TEXTS, RUNTIME, SCHEDULE, SIZES, config_name, model_text

from dgmn2cli.config import load_config
from dgmn2cli.errors import ConfigError


@pytest.fixture
def published_tree(tmp_path: Path) -> Path:
    """A folder with all 16 configurations in the mmcv language, split over base files."""
    bases = tmp_path / "_base_"
    for folder, name, text in (("datasets", "cityscapes_769x769", DATA), ("schedules", "schedule_40k", SCHEDULE)):
        (bases / folder).mkdir(parents=True)
        (bases / folder / f"{name}.py").write_text(text)
    (bases / "default_runtime.py").write_text(RUNTIME)
    (bases / "models").mkdir()
    common = ["_base_/datasets/cityscapes_769x769.py", "_base_/default_runtime.py", "_base_/schedules/schedule_40k.py"]
    for head in HEAD_TEXTS:
        (bases / "models" / f"{head}_dgmn2.py").write_text(model_text(head, "tiny"))
        for size in SIZES:
            over = f"model = dict(pretrained='pretrained/dgmn2_{size}_model.pth', backbone=dict(type='dgmn2_{size}'))\n"
            names = [f"./_base_/models/{head}_dgmn2.py", *common]
            (tmp_path / f"{config_name(head, size)}.py").write_text(f"_base_ = {names!r}\n{over}")
    return tmp_path


Faults = Callable[..., tuple[str, ...]]


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """Writes a text to a file, loads it, and gives the faults it is refused with."""

    def refused(text: str | bytes, suffix: str = ".toml", overrides: Sequence[str] = ()) -> tuple[str, ...]:
        path = tmp_path / f"mine{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        assert caught.value.exit_code == 2
        assert caught.value.faults
        assert str(caught.value).isprintable()
        return caught.value.faults

    return refused
