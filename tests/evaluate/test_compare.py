"""Two reports side by side: zeros with itself, what got better and worse, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from streets import make_tree

from dgmn2cli.cli import main
from dgmn2cli.data.catalog import open_dataset
from dgmn2cli.data.images import read_label, write_png
from dgmn2cli.errors import ConfigError
from dgmn2cli.evaluate.compare import compare
from dgmn2cli.evaluate.reading import ReportFile, read_report
from dgmn2cli.evaluate.request import EvalRequest
from dgmn2cli.evaluate.run import run

IMAGES = 12


def report_of(root: Path, name: str, wrong: dict[int, float]) -> ReportFile:
    """A report of predictions that are right but for a share of the pixels of some images."""
    folder, rng = root.with_name(name), np.random.default_rng(0)
    data = open_dataset(root, "val")
    for i, pair in enumerate(data.pairs):
        ids = data.read_label(i).copy()
        spoiled = rng.random(ids.shape) < wrong.get(i, 0.1)
        ids[spoiled] = (ids[spoiled].astype(int) + 1) % 19
        write_png(folder / f"{pair.name}.png", ids)
    run(EvalRequest(root, predictions=folder, report=root.with_name(f"{name}.json")))
    return read_report(root.with_name(f"{name}.json"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("compare") / "city", IMAGES)


def test_with_itself_all_zeros(root: Path) -> None:
    report = report_of(root, "a", {})
    found = compare(report, report)
    assert (found.difference.mean_iou, found.difference.interval) == (0.0, (0.0, 0.0))
    assert (found.better, found.worse, found.equal) == (0, 0, IMAGES)
    assert {c.difference for c in found.classes} == {0.0}
    assert {c.interval for c in found.classes} == {(0.0, 0.0)}
    assert not found.certain


def test_what_got_better_and_worse(root: Path) -> None:
    first = report_of(root, "a", {})
    second = report_of(root, "b", {3: 0.0, 7: 0.9})
    found, names = compare(first, second), [record.name for record in first.certificate.records]
    assert found.images[0].name == names[3]
    assert found.images[-1].name == names[7]
    assert (found.better, found.worse) == (1, 1)
    low, high = found.difference.interval
    assert low <= found.difference.mean_iou <= high
    assert not found.certain, "two of twelve images say nothing about the others"
    back = compare(second, first)
    assert back.difference.mean_iou == -found.difference.mean_iou
    assert back.difference.interval == pytest.approx((-high, -low), abs=1e-12)
    assert f"{100 * found.difference.mean_iou:+.2f} [{100 * low:+.2f}" in found._repr_html_()
    better = compare(first, report_of(root, "c", dict.fromkeys(range(IMAGES), 0.05)))
    assert better.certain
    assert better.difference.interval[0] > 0
    assert better.better == IMAGES


def test_images_without_labels_are_neither_better_nor_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_tree(tmp_path / "city", 3)
    for label in sorted(root.glob("gtFine/val/*/*_labelIds.png"))[:1]:
        write_png(label, np.zeros_like(read_label(label)))  # nothing that counts
    first, second = report_of(root, "a", {}), report_of(root, "b", {1: 0.0})
    found = compare(first, second)
    assert (found.better, found.worse, found.equal, found.unlabelled) == (1, 0, 1, 1)
    assert main(["compare", str(first.path), str(second.path), "--html", str(tmp_path / "page.html")]) == 0
    assert "1 better, 0 worse, 1 equal, 1 without labels" in capsys.readouterr().out
    assert "1 equal, 1 without labels" in (tmp_path / "page.html").read_text()


def test_the_paired_interval_is_narrower_than_the_two_apart(root: Path) -> None:
    hard = {i: 0.05 * i for i in range(IMAGES)}
    first = report_of(root, "d", hard)
    second = report_of(root, "e", {i: 0.9 * share for i, share in hard.items()})
    low, high = compare(first, second).difference.interval
    apart = first.plain["intervals"]["mean_iou"]
    assert high - low < 0.5 * (apart[1] - apart[0])


def test_other_images_labels_and_classes_are_refused(root: Path, tmp_path: Path) -> None:
    first = report_of(root, "a", {})
    path = tmp_path / "b.json"

    def changed(key: str, value: object) -> ReportFile:
        plain = json.loads(first.path.read_text())
        if key == "classes":
            plain["certificate"]["classes"] = value
        elif key == "count":
            plain["certificate"]["records"].pop()
        else:
            plain["certificate"]["records"][5][key] = value
        path.write_text(json.dumps(plain))
        return read_report(path)

    name = first.certificate.records[5].name
    for key, value, why in [
        ("name", "other", f"the image {name}, the other about other"),
        ("label_hash", "0" * 16, f"the label of {name} is not the same"),
        ("count", None, "about 12 images, the other about 11"),
        ("classes", list(reversed(first.certificate.classes)), "their classes are others, or in another order"),
    ]:
        with pytest.raises(ConfigError, match="the reports cannot be compared") as caught:
            compare(first, changed(key, value))
        assert why in caught.value.why
        assert "\n" not in str(caught.value)


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = report_of(root, "a", {}), report_of(root, "b", {3: 0.0})
    page = tmp_path / "page.html"
    assert main(["compare", str(first.path), str(second.path), "--html", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["difference"]["mean_iou"] > 0
    assert len(found["difference"]["interval"]) == 2
    assert first.certificate.records[3].name in page.read_text()
    assert main(["compare", str(first.path), str(second.path)]) == 0
    out = capsys.readouterr().out
    assert "1 better, 0 worse, 11 equal" in out
    assert main(["compare", str(first.path), str(tmp_path / "nowhere.json")]) == 6
    assert main(["compare", str(first.path), str(page)]) == 2
