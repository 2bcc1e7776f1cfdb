"""The examination sees what works and what does not, and its self-test would notice a wrong kernel."""

import builtins
import configparser
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgmn2cli import doctor, zoo
from dgmn2cli.cli import main
from dgmn2cli.errors import ResourceError


def verdicts(found):
    return {finding.name: finding.verdict for finding in found.findings}


def test_a_working_machine_is_healthy(tmp_path):
    found = doctor.examine(zoo.load_zoo(), tmp_path / "cache", "cpu")
    assert [f for f in found.findings if f.verdict == "failed"] == []
    seen = {finding.name: finding.value for finding in found.findings}
    assert seen["models"].startswith("16 models and 4 backbones in ")
    assert "self-test passed on cpu" in seen["op backend reference"]
    assert {"op backend native", "op backend triton"} <= set(seen)
    assert f"torch {torch.__version__.split('+')[0]}" in seen["libraries"]
    assert "0 files" in seen["cache"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="this machine has a GPU")
def test_a_missing_device_is_exit_5_and_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DGMN2_CACHE", str(tmp_path))
    assert main(["doctor", "--device", "cuda", "--json"]) == 5
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["healthy"] is False
    assert [f["name"] for f in document["findings"] if f["verdict"] == "failed"] == ["device cuda"]
    assert captured.err.splitlines()[0].startswith("device cuda: the device is not available (cuda): ")
    assert captured.err.splitlines()[-1].startswith("Error: 1 of ")
    assert main(["doctor", "--device", "cpu"]) == 0
    assert "self-test passed" in capsys.readouterr().out
    assert main(["doctor", "--device", "tpu"]) == 2


def test_the_self_test_notices_a_wrong_kernel(monkeypatch, tmp_path):
    real = doctor.deform_attention

    def wrong(*arguments, **settings):
        output = real(*arguments, **settings)
        return output * 1.001 if output.dtype == torch.float32 else output

    monkeypatch.setattr(doctor, "deform_attention", wrong)
    with pytest.raises(ResourceError, match="differs from the definition"):
        doctor.self_test("reference", "cpu")
    found = doctor.examine(zoo.load_zoo(), tmp_path, "cpu")
    assert not found.healthy
    assert verdicts(found)["op backend reference"] == "failed"


def test_the_self_test_notices_a_wrong_gradient_and_nan(monkeypatch):
    real = doctor.deform_unfold

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 1.01 * gradient if gradient.dtype == torch.float32 else gradient

    monkeypatch.setattr(doctor, "deform_unfold", lambda *a, **k: Wrong.apply(real(*a, **k)))
    with pytest.raises(ResourceError, match="computes wrongly"):
        doctor.self_test("reference", "cpu")
    monkeypatch.setattr(doctor, "deform_unfold", lambda *a, **k: real(*a, **k) * float("nan"))
    with pytest.raises(ResourceError, match="computes wrongly"):
        doctor.self_test("reference", "cpu")


def test_a_cache_that_is_no_folder_fails(tmp_path):
    (tmp_path / "file").touch()
    found = doctor.examine(zoo.load_zoo(), tmp_path / "file" / "cache", "cpu")
    assert verdicts(found)["cache"] == "failed"


def test_the_libraries_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    wanted = setup["options"]["install_requires"].split()
    assert set(doctor.REQUIRED) == {re.split("[<>=]", requirement)[0] for requirement in wanted}
    assert f"torch>={'.'.join(map(str, doctor.TORCH_TESTED[0]))}" in wanted
    extras = {extra: re.findall(r"^[\w-]+", text, re.M) for extra, text in setup["options.extras_require"].items()}
    del extras["test"], extras["dev"]  # for the engineers
    wanted_by = {(name, extra) for extra, names in extras.items() for name in names}
    assert {(name, extra) for name, extra in doctor.OPTIONAL.items() if extra} <= wanted_by
    assert {extra for extra in doctor.OPTIONAL.values() if extra} == set(extras)


@pytest.mark.parametrize(
    ("version", "verdict"), [("2.9.1", "failed"), ("2.10.0", "ok"), ("2.14.1+cu130", "ok"), ("3.0.0a0", "note")]
)
def test_another_torch_than_tested_is_said(version, verdict):
    assert doctor._torch_version(version).verdict == verdict


@pytest.mark.parametrize(("free", "verdict"), [(64 * 2**20, "note"), (8 * 2**30, "ok")])
def test_little_shared_memory_is_noted(free, verdict, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(total=free, free=free))
    [found] = doctor._shared_memory()
    assert found.verdict == verdict
    assert ("--workers 0" in found.value) == (verdict == "note")
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")
    assert list(doctor._shared_memory()) == []


def test_plain_layers_instead_of_prepacked_ones_are_noted(monkeypatch):
    assert doctor._packing().verdict == "ok" or not torch.backends.mkldnn.is_available()
    monkeypatch.setattr(doctor, "packing_available", lambda: (False, "no such operator"))
    found = doctor._packing()
    assert found.verdict == "note"
    assert "no such operator" in found.value


def test_it_works_without_proc(monkeypatch, tmp_path):
    """As on macOS."""
    hidden = []

    def hiding(real):
        def opened(path, *arguments, **settings):
            if isinstance(path, (str, Path)) and str(path).startswith("/proc"):
                hidden.append(str(path))
                raise FileNotFoundError(2, "hidden", str(path))
            return real(path, *arguments, **settings)

        return opened

    for module in (builtins, io, os):
        monkeypatch.setattr(module, "open", hiding(module.open))
    found = doctor.examine(zoo.load_zoo(), tmp_path / "cache", "cpu")
    assert [f for f in found.findings if f.verdict == "failed"] == []
    assert hidden  # it did look


def test_a_second_openmp_runtime_is_noted(monkeypatch, tmp_path):
    line = "7f0{} r-xp 00000000 fe:00 42  /usr/lib/{}\n"
    monkeypatch.setattr(doctor, "MAPS", tmp_path / "maps")
    for names, verdict in ((["torch/libgomp.so.1"] * 2, "ok"), (["torch/libgomp.so.1", "libgomp.so.1"], "note")):
        text = "".join(line.format(number, name) for number, name in enumerate([*names, "libcompress.so"]))
        (tmp_path / "maps").write_text(text)
        (found,) = doctor._openmp()
        assert (found.verdict, found.value[0]) == (verdict, str(len(set(names))))
