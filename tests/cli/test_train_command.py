"""`dgmn2 train` as a user meets it: options, plan, a run of two steps and what may be done with it, refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import stand_ins
from streets import make_tree

from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.cli import main
from dgmn2cli.data.cityscapes import CLASSES
from dgmn2cli.data.images import read_image
from dgmn2cli.inference.load import build_model

Run = Callable[..., tuple[int, str, str]]
SMALL = (
    "--data-root", "data", "--scale", "96x64", "--crop", "32", "--window", "64", "--stride", "48", "--batch-size", "1",
    "--workers", "0", "--device", "cpu",
)  # fmt: skip
TWO_STEPS = (*SMALL, "--from", "scratch", "--max-iters", "2", "--val-every", "0")
NAIVE = "setr_naive-tiny"


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_tree(tmp_path_factory.mktemp("train") / "data", 2, split="train", size=(64, 96))
    return make_tree(root, 1, size=(64, 96))


@pytest.fixture
def run(streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`dgmn2 ARGUMENTS` in a folder with `data`: exit code, stdout, stderr."""
    (tmp_path / "data").symlink_to(streets)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def saved(path: str) -> dict:
    return torch.load(path, weights_only=True)


def test_help_names_every_option(run: Run) -> None:
    code, out, _ = run("train", "--help")
    assert code == 0
    for option in (
        "data-root", "out", "gpus", "max-iters", "batch-size", "accumulate", "crop", "scale", "window", "stride",
        "resume", "from", "dtype", "seed", "deterministic", "val-every", "save-every", "keep", "ema",
        "freeze-backbone", "class-weights", "set", "dry-run", "force",
    ):  # fmt: skip
        assert f"--{option} " in out, option


def test_dry_run_tells_the_plan_and_writes_nothing(run: Run) -> None:
    options = ("--max-iters", "40000", "--accumulate", "2", "--freeze-backbone", "--dry-run")
    code, out, err = run("train", NAIVE, *TWO_STEPS, *options)
    assert (code, err) == (0, "")
    rows = {line[:17].strip(): line[17:] for line in out.splitlines()}
    assert rows["effective batch"].startswith("2 = 1 x 1 x 2")
    assert rows["memory"].endswith("GB per process (measured)")
    assert "s per step: " in rows["time"]
    assert rows["run folder"] == f"runs/{NAIVE} (left as it is)"
    assert [path.name for path in Path().iterdir()] == ["data"]

    plan = json.loads(run("train", NAIVE, *TWO_STEPS, *options, "--json")[1])
    assert plan["iterations"] == 40000
    assert plan["training_seconds"] == pytest.approx(40000 * plan["seconds_per_step"])
    assert 2e8 < plan["memory_bytes"] < 2e10
    assert 0 < plan["trained"] < plan["parameters"] / 10


def test_a_dry_run_refuses_what_the_training_would(run: Run) -> None:
    Path("weights.pth").write_bytes(b"no weights")
    Path("file").touch()
    for options, code in ((("--from", "weights.pth"), 3), (("--out", "file"), 5), (("--out", "file/below"), 5)):
        assert run("train", NAIVE, *TWO_STEPS, *options, "--dry-run")[0] == code, options
    Path("taken/checkpoints").mkdir(parents=True)
    Path("taken/checkpoints/last.pth").touch()
    code, _, err = run("train", NAIVE, *TWO_STEPS, "--out", "taken", "--dry-run")
    assert (code, err[:50]) == (2, "Error: there is a training in this folder already ")
    Path("other").mkdir()
    Path("other/mine.txt").touch()
    assert run("train", NAIVE, *TWO_STEPS, "--out", "other", "--dry-run")[0] == 2
    code, _, err = run("train", "--out", "taken", "--resume", "--dry-run")
    assert (code, "--dry-run plans a new run" in err) == (2, True), err


def test_a_run_and_what_may_be_done_with_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run("train", NAIVE, *TWO_STEPS, "--out", "r")
    assert code == 0
    assert err.splitlines()[0].startswith("Effective batch 1 (1 process x 1; the recipe is made for 8: --accumulate 8)")
    assert "everything goes to r." in err
    assert "after 2 steps: mIoU" in err
    assert "checkpoint       r/checkpoints/last.pth" in out

    code, _, err = run("train", NAIVE, *TWO_STEPS, "--out", "r")
    assert (code, err) == (
        2,
        "Error: there is a training in this folder already (r). Go on with it with --resume, or choose another "
        "--out.\n",
    )
    code, _, err = run("train", NAIVE, *TWO_STEPS, "--out", "r", "--resume", "--seed", "4", "--crop", "64")
    assert code == 2
    assert err.splitlines()[:2] == ["augment.crop: 32 -> 64", "train.seed: 0 -> 4"]
    assert "or --force to go on with the new ones" in err.splitlines()[-1]

    monkeypatch.setenv("DGMN2_MODEL", "setr_pup-tiny")  # the run's own model comes before the environment's
    code, out, err = run("train", "--out", "r", "--resume", "--max-iters", "3", "--force", "--json")
    assert code == 0
    monkeypatch.delenv("DGMN2_MODEL")
    report = json.loads(out)
    assert (report["model"], report["resumed_at"], report["iterations"]) == ("setr_naive-tiny", 2, 3)
    assert report["notes"][:2] == ["Changed: train.iters: 2 -> 3", "Resumed after 2 steps."]

    small = ("--scale", "96x64", "--window", "64", "--stride", "48", "--device", "cpu")
    checkpoint = report["checkpoint"]
    code, out, _ = run("eval", NAIVE, "--checkpoint", checkpoint, "--data-root", "data", *small, "--json")
    assert code == 0
    assert json.loads(out)["scores"]["mean_iou"] == report["mean_iou"]
    picture = next(Path("data").glob("leftImg8bit/val/*/*.png"))
    command = ("infer", picture, "-m", NAIVE, *small, "--save", "ids", "-o")
    assert run(*command, "full", "--checkpoint", checkpoint)[0] == 0
    write_checkpoint("plain.pth", saved(checkpoint)["state_dict"], {})
    assert run(*command, "plain", "--checkpoint", "plain.pth")[0] == 0
    torch.save({"state_dict": saved(checkpoint)["state_dict"]}, "plainer.pth")
    assert run(*command, "plainer", "--checkpoint", "plainer.pth")[0] == 0
    masks = [read_image(next(Path(name).glob("*_ids.png"))) for name in ("full", "plain", "plainer")]
    assert masks[0].shape[:2] == (64, 96)
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])


def test_options_do_what_they_say(run: Run) -> None:
    weights = Path("weights.txt")
    weights.write_text("# all alike\n" + "1\n" * 19)
    code, out, _ = run(
        "train", NAIVE, *TWO_STEPS, "--out", "r", "--accumulate", "2", "--ema", "--freeze-backbone", "--deterministic",
        "--class-weights", weights, "--dtype", "bfloat16", "--seed", "7", "--save-every", "1", "--keep", "1",
        "--set", "optim.lr=5e-5", "--set", "train.ema_decay=0.5", "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    assert (report["effective_batch"], report["lr"]) == (2, 5e-5)
    assert report["backend"] in ("native", "reference")
    files = sorted(path.name for path in Path("r/checkpoints").iterdir())
    assert files == ["best.pth", "iter_000000002.pth", "last.pth", "previous.pth"]
    last, previous = saved("r/checkpoints/last.pth"), saved("r/checkpoints/previous.pth")
    usable, raw = last["state_dict"], last["training"]["weights"]
    assert all(torch.equal(value, previous["state_dict"][key]) for key, value in usable.items() if "backbone" in key)
    mean = (previous["state_dict"][CLASSIFIER] + raw[CLASSIFIER]) / 2
    torch.testing.assert_close(usable[CLASSIFIER], mean, rtol=0, atol=1e-7)
    assert len(last["optimizer"]["state"]) < 20  # the head's parameters
    settings = Path("r/config.toml").read_text()
    for line in ('dtype = "bfloat16"', "seed = 7", "deterministic = true", "lr = 5e-05", "accumulate = 2"):
        assert line in settings
    assert f"class_weights = {[1.0] * 19}" in settings


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(run: Run) -> None:
    options = ("--max-iters", "4", "--save-every", "1", "--set", "optim.lr=1e30", "--out", "r")
    code, out, err = run("train", NAIVE, *TWO_STEPS, *options)
    assert (code, out) == (7, "")
    message = err.splitlines()[-1]
    assert message.startswith("Error: the loss is not a finite number (step 2): it is nan at learning rate 7.7189e+29")
    assert any(
        path.name.removesuffix("_leftImg8bit.png") in message for path in Path("data/leftImg8bit").rglob("*.png")
    )
    for path in Path("r").rglob("*.pth"):
        assert all(bool(value.isfinite().all()) for value in saved(str(path))["state_dict"].values())


def test_fine_tuning_takes_the_rows_of_classes_with_equal_names(run: Run) -> None:
    Path("own").mkdir()
    Path("own/dataset.toml").write_text(DATASET)
    first = stand_ins(lambda: build_model(NAIVE))
    write_checkpoint("a.pth", first, {"CLASSES": CLASSES})
    code, _, err = run("train", NAIVE, *TWO_STEPS, "--data-root", "own", "--from", "a.pth", "--out", "b")
    assert code == 0, err
    assert "model.num_classes: 19 -> 3, the data set's." in err
    assert "Classifier rows copied by name (2 of 3): road, sky." in err
    assert "Classifier rows with fresh weights: house." in err
    last = saved("b/checkpoints/last.pth")
    rows = last["state_dict"][CLASSIFIER]
    assert len(rows) == 3
    # two steps at a rate of 1e-4 move a weight by 2e-4 at most; fresh ones are drawn from +-0.1
    assert float((rows[:2] - first[CLASSIFIER][[0, 10]]).abs().max()) < 3e-4
    assert last["meta"]["CLASSES"] == ["road", "sky", "house"]


CLASSIFIER = "decode_head.conv_seg.weight"
DATASET = """\
classes = ["road", "sky", "house"]
images = "../data/leftImg8bit/{split}"
labels = "../data/gtFine/{split}"
image_suffix = "_leftImg8bit.png"
label_suffix = "_gtFine_labelIds.png"
unlisted = "ignore"

[id_map]
7 = "road"
23 = "sky"
11 = "house"
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nosuch"], 2, "no such model (nosuch)"),
        (["--crop", "0"], 2, "invalid value for '--crop'"),
        (["--batch-size", "two"], 2, "'two' is neither 'auto' nor a number"),
        (["--set", "optim.lx=1"], 2, "the configuration is wrong"),
        (["--set", "optim.lr=nan"], 2, "the configuration is wrong"),
        (["--set", "train.iters"], 2, "the configuration is wrong"),
        (["--resume"], 2, "--resume needs to know the run"),
        (["--resume", "--out", "r"], 2, "there is no run to resume (r)"),
        (["--data-root", "nowhere"], 6, "there is no such folder"),
        (["--from", "gone.pth"], 5, "the first weights are not there (gone.pth)"),
        (
            ["--from", "imagenet"],
            5,
            "download dgmn2_tiny`, or start without them: --from scratch.",
        ),
        (["--class-weights", "gone.txt"], 2, "cannot use the class weights (gone.txt)"),
        (["--gpus", "2", "--device", "cuda"], 5, "not enough GPUs (--gpus 2)"),
        (["--gpus", "2", "--device", "cuda:0"], 2, "one device for several processes"),
        (["--device", "cuda"], 5, "the device is not available (cuda)"),
        (["--set", "model.num_classes=7"], 2, "Add --set model.num_classes=19."),
    ],
)
def test_refusals(run: Run, arguments: list[str], code: int, message: str) -> None:
    found, out, err = run("train", *TWO_STEPS, *arguments)
    assert (found, out) == (code, "")
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("Error: ")
    assert [path.name for path in Path().iterdir()] == ["data"], "nothing is left behind"


def test_a_data_folder_whose_name_is_not_utf_8(run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"d\xe9")
    (tmp_path / name).symlink_to("data")
    code, out, err = run("train", NAIVE, *TWO_STEPS, "--data-root", name)
    assert (code, out) == (2, "")
    assert "data.root" in err
    assert "wanted UTF-8" in err
    assert "control" not in err
