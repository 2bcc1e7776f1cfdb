"""Exports models with stand-in weights, checks each, and prints the support matrix of docs/export.md.

Use: python docs/export_table.py [--window N] [--openvino] [--formats onnx,onnx-half,pt2] MODEL...
Each row is what was measured by this run: nothing is copied from elsewhere, and a combination that fails has no row.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import dgmn2cli
from dgmn2cli import build_model
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.data.cityscapes import CLASSES, PALETTE
from dgmn2cli.export.check import Case, Difference, difference
from dgmn2cli.inference.graph import load_graph
from dgmn2cli.inference.load import load
from dgmn2cli.inference.runtimes import open_graph
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.model.filled import filled_state


def row(model: str, form: str, runtime: str, largest: float, agreement: float, seconds: tuple[float, float]) -> str:
    """A line of the table; the seconds are of the network and of the graph."""
    own, theirs = seconds
    return f"| {model} | {form} | {runtime} | {largest:.1e} | {100 * agreement:.3f} % | {own:.1f} | {theirs:.1f} |"


def in_openvino(folder: Path, network: Segmenter, window: int) -> tuple[Difference, str]:
    """OpenVINO beside the network on one window of noise; the graph is compiled before it is timed."""
    graph = open_graph(load_graph(folder), "openvino")
    noise = np.random.default_rng(0).standard_normal((3, window, window)).astype(np.float32)
    case = Case.of_window("noise", noise)
    case.values_of(graph)
    return difference(case, network, graph), graph.info.runtime_version


def main() -> None:
    """Prints the rows, each as soon as it is measured."""
    parser = argparse.ArgumentParser(description="Measure exports and print the support matrix.")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--window", type=int, default=769)
    parser.add_argument("--formats", default="onnx")
    parser.add_argument("--openvino", action="store_true", help="run ONNX graphs in OpenVINO, too")
    given = parser.parse_args()
    print(f"Windows of {given.window}, {torch.get_num_threads()} thread(s), torch {torch.__version__}.\n")
    print("| model | format | runtime | largest difference | same class | network, s | graph, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            meta = {"CLASSES": list(CLASSES), "PALETTE": PALETTE.tolist()}
            checkpoint = write_checkpoint(Path(folder, "weights.pth"), filled_state(build_model(name)), meta)
            network = load(name, checkpoint, device="cpu")
            for form in given.formats.split(","):
                target, half = Path(folder, form), form.endswith("-half")
                kind = "pt2" if form.startswith("pt2") else "onnx"
                report = dgmn2cli.export(network, target, kind, half=half, window=given.window)
                found = report.parity
                runtime = f"{found.runtime} {found.runtime_version}"
                print(row(name, form, runtime, found.largest, found.agreement, found.window_seconds), flush=True)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
                print(f"{name} {form}: {report.seconds:.0f} s, at most {peak:.1f} GB so far", file=sys.stderr)
                if given.openvino and kind == "onnx":
                    one, version = in_openvino(target, network, given.window)
                    print(row(name, form, f"openvino {version}", one.largest, one.agreement, one.seconds), flush=True)


if __name__ == "__main__":
    main()
