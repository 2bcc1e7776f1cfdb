"""Writes an untrained checkpoint in the published format: right keys, right shapes, meaningless masks.

Use: python examples/make_checkpoint.py OUT.pth [MODEL]
"""

from __future__ import annotations

import sys

from dgmn2cli import build_model
from dgmn2cli.checkpoint.weights import write_checkpoint
from dgmn2cli.data.cityscapes import CLASSES, PALETTE
from dgmn2cli.model.filled import filled_state

path, name = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "setr_pup-tiny"
meta = {"CLASSES": list(CLASSES), "PALETTE": PALETTE.tolist(), "note": "stand-in weights, never trained"}
print(write_checkpoint(path, filled_state(build_model(name)), meta))
