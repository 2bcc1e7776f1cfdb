"""Owns the names of benchmarks and of the sides they compare; imports nothing, so that `--help` needs no torch."""

from __future__ import annotations

OURS = "dgmn2cli"
BENCHES = ("infer", "train", "op", "e2e", "profile")
# baseline -> what it is
BASELINES = {
    "plain": "the published design, its unfold compiled",
    "torchvision": "the published design, torchvision's deform_conv2d as its unfold",
    "definition": "the ops' definition in plain PyTorch under torch.compile (compiles for minutes)",
    "published": "this package's op in the published order of operations",
}
RATIO_HEADING = "dgmn2cli is"  # of the column that matters most
