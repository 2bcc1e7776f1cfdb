"""Damaged files: whatever is flipped, cut or lost, a configuration is read or refused, and nothing is executed."""

from __future__ import annotations

import builtins
import importlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmcv_samples import HEAD_TEXTS, SIZES, config_name, flat_text

from dgmn2cli.config import Config, config_to_toml, load_config, load_config_text, read_mmcv_text
from dgmn2cli.errors import ConfigError

ROUNDS = 800  # per language


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` after one to four accidents: a bit or byte changed, a piece cut out, doubled, moved, or the end lost."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 1, 2, 5, 20, 200)))
        kind = chance.randrange(7)
        if kind == 0:
            data = data[:start] + bytes([chance.randrange(256)]) + data[start + 1 :]
        elif kind == 1 and start < len(data):
            data = data[:start] + bytes([data[start] ^ (1 << chance.randrange(8))]) + data[start + 1 :]
        elif kind == 2:
            data = data[:start] + data[end:]
        elif kind == 3:
            data = data[:end] + data[start:]
        elif kind == 4:
            data = data[:start] + chance.choice(WORDS) + data[start:]
        elif kind == 5:
            lines = data.split(b"\n")
            chance.shuffle(lines)
            data = b"\n".join(lines)
        else:
            data = data[: max(start, 1)]
    return data


WORDS = (
    b"nan", b"-1", b"[", b"]", b"(", b"{", b"'", b'"', b"=", b",", b"\n", b"\0", b"None", b"True", b"1e999", b"[]",
    b"__import__('os').system('false')", b"_base_ = 'mine.py'\n", b"base = 'mine.toml'\n", b"**", b"dict(",
    b"_delete_=True,", b"open('proof', 'w')",
    b"9" * 400, b"\xff", "\u202e".encode(), b"{{ fileDirname }}", b"inf", b"''", b"[[1, 2], 'a']", b"{'a': 1}",
)  # fmt: skip


def forbid_execution(patch: pytest.MonkeyPatch) -> None:
    """Whatever runs code, fails the test."""

    def ran(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"code was run: {args}")

    for module, name in ((builtins, "exec"), (builtins, "eval"), (os, "system"), (subprocess, "Popen")):
        patch.setattr(module, name, ran)
    patch.setattr(importlib, "import_module", ran)


def loaded(path: Path) -> Config | ConfigError:
    """The configuration in a file, or the error it is refused with."""
    try:
        return load_config(path)
    except ConfigError as error:
        return error


@pytest.mark.parametrize("suffix", [".toml", ".py"])
def test_damaged_files_are_read_or_refused(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chance = random.Random(769)
    models = [(head, size) for head in HEAD_TEXTS for size in SIZES]
    texts = {
        ".toml": [config_to_toml(load_config(config_name(*model))) for model in models],
        ".py": [flat_text(*model) for model in models],
    }[suffix]
    assert len(texts) == 16
    monkeypatch.chdir(tmp_path)
    path, copy = tmp_path / f"mine{suffix}", tmp_path / "copy.toml"
    read = refused = 0
    for index in range(ROUNDS):
        path.write_bytes(damaged(texts[index % 16].encode(), chance))
        with monkeypatch.context() as patch:
            forbid_execution(patch)
            result = loaded(path)
        if isinstance(result, ConfigError):
            refused += 1
            assert result.faults
            assert str(result).isprintable()
            assert all(len(line) < 1000 for line in result.fault_lines())
        else:
            read += 1
            copy.write_text(config_to_toml(result), encoding="utf-8")
            assert load_config(copy) == result
    assert read + refused == ROUNDS
    assert refused > ROUNDS // 2
    assert read > 0
    assert {file.name for file in tmp_path.iterdir()} == {path.name, copy.name}


ODD = (None, True, -1, 0, 1.5, 10**30, "x", "", [], {}, [[]], [{}], (1, 2, 3), {"type": "x"}, {1: 2})


def with_odd_values(value: Any) -> Iterator[Any]:
    """`value` once for each place in it and each odd value, with the odd value in that place."""
    yield from ODD
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        for odd in with_odd_values(item):
            changed = value.copy()
            changed[key] = odd
            yield changed


def test_odd_values_in_any_place_are_read_or_refused():
    values = read_mmcv_text(flat_text("fpn", "tiny"), "fpn").values
    keys = ("model", "data", "optimizer", "lr_config", "runner", "checkpoint_config", "evaluation")
    tried = 0
    for key in keys:
        others = "".join(f"{name} = {values[name]!r}\n" for name in keys if name != key)
        for index, odd in enumerate(with_odd_values(values[key])):
            if index % 7 == 3 or index < len(ODD):  # every place meets several odd values, in a moderate time
                tried += 1
                try:
                    load_config_text(f"{others}{key} = {odd!r}\n", "odd")
                except ConfigError as error:
                    lines = error.fault_lines()
                else:
                    lines = []
                assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert tried > 400
