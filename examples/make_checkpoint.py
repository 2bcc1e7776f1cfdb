"""Writes an untrained checkpoint in the published format: right keys, right shapes, meaningless masks.

Use: python examples/make_checkpoint.py OUT.pth [MODEL]
"""

from __future__ import annotations

import argparse

from dgmn2cli import build_model
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.data.cityscapes import CLASSES, PALETTE
from dgmn2cli.model.filled import filled_state

parser = argparse.ArgumentParser(description="Write an untrained checkpoint in the published format.")
parser.add_argument("path", metavar="OUT.pth")
parser.add_argument("model", metavar="MODEL", nargs="?", default="setr_pup-tiny", help="default: %(default)s")
given = parser.parse_args()
meta = {"CLASSES": list(CLASSES), "PALETTE": PALETTE.tolist(), "note": "stand-in weights, never trained"}
print(write_checkpoint(given.path, filled_state(build_model(given.model)), meta))
