"""README and docs say what is so: what is derived is fresh, links and files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_what_docs_derive_from_the_code_is_fresh() -> None:
    # in a process of its own: click keeps what commands said of themselves before they were part of the program
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n| `") == 16
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8").count("\n## ") == 16


def test_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")]
    assert len(pages) >= 14
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\((?!https?:|<)([^)#\s]*)(?:#([^)]*))?\)", text):
            linked = page.parent / target if target else page
            assert linked.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings}


def test_every_page_of_docs_is_in_the_sites_navigation() -> None:
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_tree_names_every_part() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    named = set(re.findall(r"[\w.-]+(?:\.py|/|\.json|\.md|\.cfg|\.toml)|LICENSE|Makefile", tree))
    parts = [p for p in (ROOT / "dgmn2cli").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    expected = {p.name + ("/" if p.is_dir() else "") for p in parts if not p.name.startswith("_")}
    assert len(expected) >= 20
    assert expected <= named, f"the tree lacks {sorted(expected - named)}"
    paths = {path.name for path in ROOT.rglob("*") if ".venv" not in path.parts}
    missing = {name for name in named if name.rstrip("/") not in paths}
    assert not missing, f"the tree names what is not there: {sorted(missing)}"


def test_the_walks_enter_files_that_exist_and_none_twice() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Walks")[1].split("\n## ")[0]
    walks = re.split(r"^\*\*`", text, flags=re.MULTILINE)[1:]
    assert len(walks) == 9
    for walk in walks:
        steps = re.findall(r"^\d+\. (.*?)(?::|$)", walk, flags=re.MULTILINE)
        files = [name for step in steps for name in re.findall(r"`([\w/]+\.py)`", step)]
        assert 5 <= len(files) <= 10
        assert len(set(files)) == len(files)
        assert all((ROOT / "dgmn2cli" / name).is_file() for name in files)
