"""Pages escape what they show and embed what they need."""

from __future__ import annotations

import base64
import math
import os
from pathlib import Path

import cv2
import jinja2
import numpy as np
import pytest

from dgmn2cli.errors import DataError, ResourceError
from dgmn2cli.report import html


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    made: dict[str, str] = {}
    monkeypatch.setattr(jinja2, "PackageLoader", lambda package: jinja2.DictLoader(made))
    return made


def test_values_are_escaped_and_links_relative(templates: dict[str, str], tmp_path: Path) -> None:
    templates["t"] = "{{ name }} {{ 0.5 | percent }} {{ file | link }} {{ file | relative }}"
    page = html.write_page(tmp_path / "out" / "p.html", "t", name='<script>"', file=tmp_path / "a b&c")
    assert page.read_text() == "&lt;script&gt;&#34; 50.0 ../a%20b%26c ../a b&amp;c"
    templates["t"] = "{{ file | link }}"
    page = html.write_page(tmp_path / "p.html", "t", file=tmp_path / os.fsdecode(b"a\xff"))
    assert page.read_text() == "a%FF"


def test_a_value_that_is_missing_is_an_error(templates: dict[str, str], tmp_path: Path) -> None:
    templates["t"] = "{{ name }}"
    with pytest.raises(jinja2.UndefinedError):
        html.write_page(tmp_path / "p.html", "t")
    assert not (tmp_path / "p.html").exists()


def test_images_are_embedded(tmp_path: Path) -> None:
    image = np.full((4, 5, 3), 9, np.uint8)
    for name, kind in (("a.PNG", "png"), ("a.jpg", "jpeg"), ("a.bmp", "png")):
        cv2.imwrite(str(tmp_path / name.lower()), image)
        (tmp_path / name.lower()).rename(tmp_path / name)
        head, content = html.embedded(tmp_path / name).split(",")
        assert head == f"data:image/{kind};base64"
        assert cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR).shape == (4, 5, 3)
    for name in ("none.png", "none.bmp"):
        with pytest.raises((ResourceError, DataError)):
            html.embedded(tmp_path / name)


def test_percent() -> None:
    assert (html.percent(0.58456), html.percent(math.nan)) == ("58.5", "n/a")
