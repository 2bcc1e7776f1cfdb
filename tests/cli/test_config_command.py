"""`dgmn2 config`: every setting is listed, a name becomes a file that loads back equal, a file's faults are named."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from dgmn2cli.cli import main
from dgmn2cli.config import load_config, published_names, settings
from dgmn2cli.files import to_plain


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_setting_is_listed_with_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "config", "list")
    rows = [line.split()[0] for line in out.splitlines() if "." in line.split("  ")[0]]
    assert code == 0
    assert len({setting.key for setting in settings()}) == 67
    assert {setting.key for setting in settings()} <= set(rows)
    code, out, _ = call(capsys, "config", "list", "optim")
    assert code == 0
    assert len(out.splitlines()) == 2 + 7
    assert call(capsys, "config", "list", "no such")[0] == 2


def test_the_json_schema_accepts_the_published_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "config", "list", "--json")
    listed = json.loads(out)
    schema = listed["schema"]
    assert code == 0
    assert len(listed["settings"]) == 67
    jsonschema.Draft202012Validator.check_schema(schema)
    assert len(published_names()) == 16
    for name in published_names():
        jsonschema.validate(to_plain(load_config(name)), schema)
    document = to_plain(load_config(published_names()[0]))
    for section, key, value in (("optim", "lr", 0), ("optim", "lr", "1"), ("model", "head", "x"), ("data", "new", 1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, section: {**document[section], key: value}}, schema)


def test_a_name_resolves_to_a_file_that_loads_back_equal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for name in ("fpn-small", load_config("fpn_dgmn2_small_4x2_769x769_40k_cityscapes").name):
        code, out, _ = call(capsys, "config", "show", name, "--set", "optim.lr=5e-5")
        path.write_text(out)
        assert code == 0
        assert load_config(path) == load_config("fpn_dgmn2_small_4x2_769x769_40k_cityscapes", ["optim.lr=5e-5"])
    code, out, _ = call(capsys, "config", "show", str(path), "--json")
    assert json.loads(out)["optim"]["lr"] == 5e-5
    assert call(capsys, "config", "show", "no-such")[0] == 2


def test_all_faults_of_a_file_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[optim]\n" + "".join(f"x{index} = 1\n" for index in range(30)) + "lr = -1\n")
    code, out, err = call(capsys, "config", "check", str(path))
    assert code == 2
    assert len(out.splitlines()) == 31
    assert "31 faults" in err
    assert len(json.loads(call(capsys, "config", "check", str(path), "--json")[1])["faults"]) == 31
    path.write_text("[optim]\nlr = 1e-3\n")
    code, out, _ = call(capsys, "config", "check", str(path), "--json")
    assert code == 0
    assert json.loads(out)["differences"] == ["optim.lr: 0.0001 -> 0.001"]
    path.write_bytes(b"\xff\n")
    code, out, _ = call(capsys, "config", "check", str(path))
    assert (code, "line 1 is not UTF-8" in out) == (2, True)
    assert call(capsys, "config", "check", str(tmp_path / "none.toml"))[0] == 2
    for name in ("nowhere", "nowhere.yaml"):
        assert call(capsys, "config", "check", str(tmp_path / name))[:2] == (2, "there is no such file\n")
