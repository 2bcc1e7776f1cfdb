"""Builds the compiled CPU kernels (setup.cfg cannot declare them) and packs zoo.json, configs/ and a photograph."""

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

LEVEL = [] if "-O0" in os.environ.get("CXXFLAGS", "") else ["-O3"]  # CXXFLAGS=-O0 builds in seconds, to be debugged
KERNELS = Extension(
    "dgmn2cli.ops._kernels",
    sources=["dgmn2cli/ops/csrc/module.cpp"],
    depends=[str(header) for header in sorted(Path("dgmn2cli/ops/csrc").glob("*.h"))],
    language="c++",
    extra_compile_args=["-std=c++17", *LEVEL, "-fvisibility=hidden", "-Wall", "-Wextra"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=True,
    optional=True,  # without a compiler the package still installs; `dgmn2 doctor` says which backend runs
)


class BuildWithResources(build_py):
    """Copies zoo.json, configs/ and the example photograph into the package, where resources.py looks for them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "dgmn2cli", "_resources")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("configs", target / "configs")
            shutil.copy2("zoo.json", target / "zoo.json")
            (target / "examples").mkdir()
            for name in ("summer_palace.jpg", "README.md"):
                shutil.copy2(f"examples/{name}", target / "examples" / name)


setup(
    ext_modules=[KERNELS],
    cmdclass={"build_py": BuildWithResources},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
