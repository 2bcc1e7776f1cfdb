"""`dgmn2 infer` as a user meets it: files, answers, messages, exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from networks import stand_ins

from dgmn2cli.checkpoint.weights import read_checkpoint, write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.data.images import read_image, read_label
from dgmn2cli.inference.load import build_model
from dgmn2cli.model.fused.lanes import lanes

Run = Callable[..., tuple[int, str, str]]
SMALL = ("-m", "setr_naive-tiny", "--scale", "96x64", "--window", "64", "--stride", "48")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "setr_naive-tiny.pth"
    return write_checkpoint(path, stand_ins(lambda: build_model("setr_naive-tiny")), {"iter": 40000})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGMN2_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str, weights: str | Path | None = checkpoint) -> tuple[int, str, str]:
        capsys.readouterr()
        given = ["--checkpoint", str(weights)] if weights else []
        small = SMALL[:2] + SMALL[4:] if "native" in arguments else SMALL  # which heeds no scale
        code = main(["infer", *small, *given, *arguments])  # of an option given twice the last counts
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def picture(path: Path, height: int = 40, width: int = 70, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert cv2.imwrite(str(path), cv2.GaussianBlur(pixels, (9, 9), 3))
    return path


def test_mask_and_overlay(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "street.png")
    code, out, err = run("street.png")
    assert (code, err) == (0, "")
    ids = read_label(tmp_path / "dgmn2-output" / "street_ids.png")
    assert ids.shape == (40, 70)
    assert ids.max() < 19
    overlay = read_image(tmp_path / "dgmn2-output" / "street_overlay.png")
    assert overlay.shape[1] >= 70
    assert overlay.shape[0] > 40
    assert "street.png  70x40, 2 windows" in out
    assert "1 image" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dgmn2-output", "street.png"]


def test_averaged_weights_are_taken_on_request_and_reported(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    picture(tmp_path / "a.png")
    read = read_checkpoint(checkpoint)
    other = {key: value.flip(0) for key, value in read.state.items()}
    path = tmp_path / "both.pth"
    torch.save(
        {"state_dict": read.state, "state_dict_ema": {f"module.{key}": item for key, item in other.items()}}, path
    )
    runs = {}
    for flags in ((), ("--ema",)):
        code, out, err = run("a.png", "--json", "--overwrite", "-o", f"out{len(flags)}", *flags, weights=path)
        assert code == 0
        assert "state_dict_ema" in err
        runs[flags] = json.loads(out)["run"]["weights"]
    assert runs == {(): "state_dict", ("--ema",): "state_dict_ema"}
    masks = [read_label(tmp_path / f"out{count}" / "a_ids.png") for count in (0, 1)]
    assert (masks[0] != masks[1]).any()
    assert run("a.png", "--ema", "--overwrite")[0] == 3  # the checkpoint holds none


def test_the_same_bytes_twice(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    kinds = "ids,color,overlay,labelids,conf,probs,stats"
    for folder in ("one", "two"):
        assert run("a.png", "-o", folder, "--save", kinds)[0] == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir() if path.name != "results.jsonl")
    assert names == sorted(
        f"a_{kind}" for kind in
        ("ids.png", "color.png", "overlay.png", "labelids.png", "conf.png", "probs.npz", "stats.json")
    )  # fmt: skip
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_memory_limit_changes_no_mask(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert run("a.png", "-o", "free", "--save", "ids,conf")[0] == 0
    code, out, err = run("a.png", "-o", "limited", "--save", "ids,conf", "--max-memory", "60G")
    assert code == 0
    assert f"2 windows of 64, {lanes()} at a time, scores of the whole image held, at most" in err
    assert "GB in use" in out
    for name in ("a_ids.png", "a_conf.png"):
        assert (tmp_path / "free" / name).read_bytes() == (tmp_path / "limited" / name).read_bytes()


def test_outputs_agree_with_each_other(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    code, out, _ = run("a.png", "-o", "o", "--save", "ids,labelids,conf,probs,stats", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["run"]["model"] == "setr_naive-tiny"
    assert len(report["run"]["sha256"]) == 64
    [result] = report["images"]
    ids = read_label(tmp_path / "o" / "a_ids.png")
    probs = np.load(tmp_path / "o" / "a_probs.npz")["probs"]
    assert probs.shape == (19, 40, 70)
    assert probs.dtype == np.float16
    assert np.abs(probs.astype(np.float32).sum(0) - 1).max() < 0.01
    best = np.take_along_axis(probs, ids[None].astype(int), 0)[0]
    assert (best == probs.max(0)).all()
    confidence = read_label(tmp_path / "o" / "a_conf.png")
    assert np.abs(confidence / 255 - best).max() < 0.004
    counts = np.bincount(ids.ravel(), minlength=19)
    assert {share["id"]: share["pixels"] for share in result["classes"]} == {
        i: n for i, n in enumerate(counts.tolist()) if n
    }
    assert json.loads((tmp_path / "o" / "a_stats.json").read_text())["classes"] == result["classes"]
    label_ids = read_label(tmp_path / "o" / "a_labelids.png")
    assert set(np.unique(label_ids)) <= set(range(7, 34))


def test_multi_scale_and_both_forms(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    probabilities = []
    for folder, extra in (
        ("fused", []),
        ("published", ["--published-order"]),
        ("reference", ["--backend", "reference"]),
    ):
        code, out, _ = run("a.png", "-o", folder, "--scale", "64x64", "--save", "probs", "--ms-flip", "--json", *extra)
        assert code == 0
        report = json.loads(out)
        assert report["images"][0]["windows"] == 2 * (1 + 1 + 1 + 2 + 2 + 2)
        assert report["run"]["form"] == ("published" if folder == "published" else "fused")
        probabilities.append(np.load(tmp_path / folder / "a_probs.npz")["probs"].astype(np.float32))
    assert np.abs(probabilities[0] - probabilities[1]).max() < 2e-3  # float16 files
    assert np.abs(probabilities[0] - probabilities[2]).max() < 2e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (33, 47), (200, 3)])
@pytest.mark.parametrize("protocol", ["paper", "native"])
def test_odd_sizes(run: Run, tmp_path: Path, size: tuple[int, int], protocol: str) -> None:
    picture(tmp_path / "odd.png", *size)
    assert run("odd.png", "--protocol", protocol)[0] == 0
    assert read_label(tmp_path / "dgmn2-output" / "odd_ids.png").shape == size


def test_the_mask_has_the_displayed_size(run: Run, tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert run("turned.jpg")[0] == 0
    assert read_label(tmp_path / "dgmn2-output" / "turned_ids.png").shape == (50, 30)


def test_folders_globs_and_lists(run: Run, tmp_path: Path) -> None:
    for name in ("in/a.png", "in/deep/a.png", "in/deep/b.jpg", "other/c.png"):
        picture(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "list.txt").write_text("# pictures\n\nother/c.png\n")
    code, _, _ = run("in", "@list.txt", "in/deep/*.jpg", "-o", "out", "--save", "ids")
    assert code == 0
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert made == ["a_ids.png", "c_ids.png", "deep/a_ids.png", "deep/b_ids.png"]  # in/deep/b.jpg is named twice
    assert run(str(tmp_path / "in" / "a.png"), "in", "-o", "again", "--save", "ids")[0] == 0
    assert len(list((tmp_path / "again").rglob("*.png"))) == 3


def test_files_of_one_name_keep_the_folders_that_tell_them_apart(run: Run, tmp_path: Path) -> None:
    names = [f"drive{drive}/image_02/data/0000000000.png" for drive in (1, 2)]
    for seed, name in enumerate(names):
        picture(tmp_path / "kitti" / name, seed=seed)
    (tmp_path / "kitti" / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode() + b"\r\n")
    for source in (["@kitti/list.txt"], [f"kitti/{name}" for name in names], ["kitti/*/*/data/*.png"]):
        assert run(*source, "-o", "out", "--save", "ids", "--overwrite")[0] == 0
        made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
        assert made == [f"{name.removesuffix('.png')}_ids.png" for name in names]
    assert run("kitti/drive1", "kitti/drive2", "-o", "both", "--save", "ids")[0] == 0
    assert len(list((tmp_path / "both").rglob("*.png"))) == 2


def test_a_list_may_name_anything(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / os.fsdecode(b"d\xe9.png")).write_bytes((tmp_path / "a.png").read_bytes())
    for text, code in ((b"/\na.png\n", 6), (b"/\n", 6), (b"..\n.\na.png\n", 6), (b"d\xe9.png\n", 0), (b"a\0\n", 6)):
        (tmp_path / "list").write_bytes(text)
        got, out, err = run("@list", "--overwrite", "--json")
        assert got == code, err
        assert "unforeseen" not in err
        assert not out or "images" in json.loads(out)


def test_compiling_on_a_cpu_is_refused(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    code, _, err = run("a.png", "--compile", "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "--compile" in err


def test_one_bad_file_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "in" / f"{index}.png", seed=index)
    good = (tmp_path / "in" / "1.png").read_bytes()
    (tmp_path / "in" / "1.png").write_bytes(good[: len(good) // 2])
    os.mkfifo(tmp_path / "in" / "pipe.png")
    code, out, err = run("in", "-o", "out", "--json")
    assert code == 6
    assert len(json.loads(out)["images"]) == 2
    assert [Path(failure["path"]).name for failure in json.loads(out)["failures"]] == ["1.png", "pipe.png"]
    assert err.splitlines()[-1] == "Error: 2 of 4 images could not be segmented. The others were."
    assert "1.png" in err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "0_ids.png", "0_overlay.png", "2_ids.png", "2_overlay.png", "results.jsonl",
    ]  # fmt: skip


def test_existing_outputs_need_overwrite(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert run("a.png")[0] == 0
    before = (tmp_path / "dgmn2-output" / "a_ids.png").read_bytes()
    code, _, err = run("a.png")
    assert code == 2
    assert "--overwrite" in err
    assert run("a.png", "--overwrite")[0] == 0
    assert (tmp_path / "dgmn2-output" / "a_ids.png").read_bytes() == before


def test_an_input_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    source = picture(tmp_path / "a_ids.png")
    picture(tmp_path / "a.png")
    before = source.read_bytes()
    code, _, err = run("a.png", "a_ids.png", "-o", ".", "--overwrite")
    assert code == 2
    assert "overwrite its input" in err
    assert source.read_bytes() == before


def test_outputs_below_the_folder_are_no_inputs(run: Run, tmp_path: Path) -> None:
    for name in ("d/a.png", "d/deep/b.png"):
        picture(tmp_path / name)
    for sources in (["d"], ["d/**/*.png"], ["."]):
        first = run(*sources, "-o", "d/out", "--json", "--overwrite")
        assert (first[0], json.loads(first[1])["done"]) == (0, 2)
        code, out, err = run(*sources, "-o", "d/out", "--json", "--resume")
        assert (code, [json.loads(out)[key] for key in ("done", "resumed")]) == (0, [2, 2])
        assert "the output folder" in err
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "link").symlink_to(tmp_path / "d")
    code, out, _ = run("e", "-o", "d/out", "--json", "--overwrite")
    assert (code, json.loads(out)["done"]) == (0, 2)
    assert run("d/out", "-o", "d/out", "--save", "conf", "--json")[0] == 0  # which is named itself


def test_an_image_too_large_for_the_machine_fails_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, side in (("d/a.png", 40), ("d/b.png", 200), ("d/c.png", 40)):
        picture(tmp_path / name, side, side)
    monkeypatch.setattr("dgmn2cli.inference.plan.machine_memory", lambda: 4 * 19 * 150 * 150)
    code, out, err = run("d", "--protocol", "native", "--window", "64", "--stride", "48", "--json")
    report = json.loads(out)
    assert (code, report["done"], report["failed"]) == (6, 2, 1)
    assert report["failures"][0]["path"] == "d/b.png"
    assert "not enough memory (d/b.png): 200x200 pixels take at least" in err
    assert (tmp_path / "dgmn2-output" / "c_ids.png").exists()


BAD = [
    (("missing.png",), 6, "cannot find the image (missing.png): there is no such file."),
    (("missing.png", "gone.jpg"), 6, "none of these files exist"),
    (("https://example.org/a.jpg",), 2, "images are not downloaded (https://example.org/a.jpg)"),
    (("empty",), 6, "no image in the folder"),
    (("*.tif",), 6, "no file matches (*.tif)"),
    (("@none.txt",), 6, "cannot read the list"),
    (("a.png", "--save", "ids,masks"), 2, "no such output (masks)"),
    (("a.png", "--save", ","), 2, "no output is named"),
    (("a.png", "--window", "64", "--stride", "65"), 2, "sliding window is impossible"),
    (("a.png", "--scale", "big"), 2, "not WIDTHxHEIGHT"),
    (("a.png", "--device", "tpu"), 2, "none of auto, cpu"),
    (("a.png", "--device", "cuda:7"), 5, "device is not available"),
    (("a.png", "--device", "cuda:256"), 5, "device is not available (cuda:256)"),
    (("a.png", "--device", "cuda:999"), 5, "device is not available (cuda:999)"),
    (("a.png", "--backend", "triton"), 5, "triton cannot run"),
    (("a.png", "-m", "setr_pup-tinny"), 2, "no such model"),
    (("a.png", "-m", "../../x"), 2, "no such model"),
    (("a.png", "--max-pixels", "100"), 6, "could not be segmented"),
    (("a.png", "--alpha", "2"), 2, "alpha"),
    (("a.png", "--max-memory", "much"), 2, "no amount of memory, such as 3G"),
    (("a.png", "--max-memory", "90M"), 5, "the memory limit is too small"),
    (("a.png", "-o", "a.png"), 5, "cannot write"),
    ((), 2, "IMAGE"),
    (("a.png", "--gpus", "0"), 2, "gpus"),
    (("a.png", "--gpus", "two"), 2, "gpus"),
    (("a.png", "--gpus", "2", "--device", "cuda:0"), 5, "device is not available"),
    (("a.png", "--gpus", "64", "--device", "cuda"), 5, "device is not available"),
    (("missing.png", "--gpus", "2", "--device", "cpu"), 6, "cannot find the image"),
    (("a.png", "--gpus", "2", "--device", "cpu", "-o", "out.tar"), 2, "several processes cannot write one archive"),
    (("a.png", "--workers", "-1"), 2, "workers"),
    (("a.png", "--workers", "many"), 2, "workers"),
    (("a.png", "--ray", ""), 2, "the address of the Ray cluster is empty"),
    (("a.png", "--resume=yes"), 2, "resume"),
    (("a.png", "-o", "{a,b}"), 2, "the outputs go to several folders"),
    (("a.png", "-o", "{a,b}.tar"), 2, "the archives do not fit"),
    (("a.png", "-o", "empty/{1..2000000}.tar"), 2, "braces stand for too many names"),
    (("{1..3}.png",), 6, "none of these files exist"),
    (("missing.tar",), 6, "cannot read the archive (missing.tar): there is no such file"),
    (("text.tar",), 6, "cannot read the archive (text.tar)"),
    (("a.png", "-o", "text.tar"), 2, "output files exist already"),
    (("a.png", "-o", "text.tar", "--resume"), 2, "cannot go on with the archive"),
    (("a.png", "-o", "a.png/out.tar"), 5, "is no folder"),
    (("a.png", "-o", "piped"), 5, "a pipe, socket or device is there"),
    (("a.png", "-o", "piped", "--resume"), 6, "it is a pipe"),
    (("@nul.txt",), 6, "line 2 has a NUL byte"),
    (("@long.txt",), 6, "line 1 is longer than 65,536 bytes"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=[" ".join(case[0]) or "none" for case in BAD])
def test_bad_input(run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / "results.jsonl")
    (tmp_path / "text.tar").write_text("no archive" * 100)
    (tmp_path / "nul.txt").write_bytes(b"a.png\na\0.png\n")
    (tmp_path / "long.txt").write_text("x" * 70_000)
    given, _, err = run(*arguments)
    assert (given, err.count("Traceback")) == (code, 0), err
    assert err.splitlines()[-1].startswith("Error: ")
    assert words in err


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "nowhere", "127.0.0.1:port", "127.0.0.1:99999", "ray://127.0.0.1:1"]
)
def test_a_ray_cluster_that_is_not_there(run: Run, tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    picture(tmp_path / "a.png")
    code, out, err = run("a.png", "--ray", address)
    assert (code, out) == (4, "")
    assert err.splitlines()[-1].startswith(f"Error: cannot reach the Ray cluster ({address})")
    assert not (tmp_path / "dgmn2-output").exists()


def test_ray_that_is_not_installed_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setattr("dgmn2cli.errors.find_spec", lambda name: None)
    code, out, err = run("a.png", "--ray", "local")
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert "dgmn2cli[ray]" in err


def test_weights_not_on_disk(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    code, _, err = run("a.png", "--offline", weights=None)
    assert code == 4
    assert "not on disk" in err
    assert "dgmn2 download setr_naive-tiny" in err


def test_another_models_weights(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    other = write_checkpoint(tmp_path / "pup.pth", stand_ins(lambda: build_model("setr_pup-tiny")), {})
    code, out, err = run("a.png", weights=other)
    assert (code, out) == (3, "")
    assert "unexpected: decode_head.conv_0.weight" in err
    assert not (tmp_path / "dgmn2-output").exists()


def test_non_finite_weights_make_no_mask(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    state = stand_ins(lambda: build_model("setr_naive-tiny"))
    spoilt = state["backbone.block3.1.attn.qkv.weight"] = state["backbone.block3.1.attn.qkv.weight"].clone()
    spoilt[5, 5] = float("nan")
    code, _, err = run("a.png", weights=write_checkpoint(tmp_path / "nan.pth", state, {}))
    assert code == 7
    assert "backbone.block3.1.attn.qkv.weight" in err
    assert not (tmp_path / "dgmn2-output").exists()


def test_classes_of_a_fine_tuned_model(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    config = tmp_path / "mine.toml"
    config.write_text('base = ["setr_naive_dgmn2_tiny_4x2_769x769_40k_cityscapes"]\n[model]\nnum_classes = 3\n')
    meta = {"CLASSES": ["field", "path", "water"], "PALETTE": [[1, 2, 3], [40, 50, 60], [200, 0, 0]]}
    weights = write_checkpoint(tmp_path / "mine.pth", stand_ins(lambda: build_model(str(config))), meta)
    code, out, err = run("a.png", "--json", "-m", str(config), weights=weights)
    assert code == 0, err
    assert {share["name"] for share in json.loads(out)["classes"]} <= {"field", "path", "water"}
    code, _, err = run("a.png", "--save", "labelids", "-m", str(config), weights=weights)
    assert code == 2
    assert "not those of Cityscapes" in err
