"""No two modules of the package need each other, on import or by a name imported later; test folders go together."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FACADE = "dgmn2cli"  # it names the modules whose parts it offers, and is their package


def parsed() -> dict[str, ast.Module]:
    found = {}
    for path in (ROOT / "dgmn2cli").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.Module) -> set[str]:
    """What a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def named(tree: ast.Module) -> set[str]:
    """What it imports; texts count, since `import_module` and lazy commands take them."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return imported(tree) | {value.split(":")[0] for value in constants if isinstance(value, str)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = parsed()
    needs = {}
    for name, tree in modules.items():
        wanted = named(tree) & modules.keys() - {name, FACADE}
        packages = {name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)}  # loaded before it anyway
        needs[name] = set() if name == FACADE else wanted - packages
    assert sum(map(len, needs.values())) > 300, "the imports were not found"
    assert "dgmn2cli.ops.triton.operators" in needs["dgmn2cli.ops.triton"], "the lazy imports were not found"
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as circle:
        raise AssertionError(" <- ".join(circle.args[1])) from None


def test_any_test_folders_can_be_collected_together() -> None:
    """Each folder's modules are imported by their bare names, and every folder may have a conftest.py."""
    modules = [path for path in (ROOT / "tests").rglob("*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.stem for path in modules if path.stem != "conftest"]
    assert len(names) > 70
    assert sorted(set(names)) == sorted(names)
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules}
    assert [str(path) for path, tree in trees.items() if "conftest" in imported(tree)] == []
