"""`--dtype auto`: bfloat16 where the machine multiplies it and the loaded weights allow it, else float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dgmn2cli.data.images import read_image
from dgmn2cli.data.transforms import resize_image
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.observer import Observer
from dgmn2cli.resources import example_photograph
from dgmn2cli.runtime import multiplies_bfloat16, resolve_device

AGREEMENT = 0.999  # of the pixels, at least, must get the same class
TRIED = (257, 513)  # height and width at which the photograph is segmented with both


def with_fitting_dtype(make: Callable[..., Segmenter], device: str, observer: Observer) -> Segmenter:
    """The network that `make(dtype=NAME)` makes in what suits machine and weights; `info.dtype_reason` says why.

    Raises:
        Dgmn2Error: what `make` raises.
    """
    if not multiplies_bfloat16(resolve_device(device)):
        return _because(make(dtype="float32"), "the device has no instructions for bfloat16", observer)
    exact = _ids(make(dtype="float32"))  # gone before the other is made: memory for one at a time
    fast = make(dtype="bfloat16")
    same = float((_ids(fast) == exact).mean())
    found = f"bfloat16 gives {same:.3%} of a photograph's pixels the class that float32 gives, {AGREEMENT:.1%} wanted"
    if same >= AGREEMENT:
        return _because(fast, found, observer)
    del fast
    return _because(make(dtype="float32"), found, observer)


def _ids(segmenter: Segmenter) -> np.ndarray:
    photograph = resize_image(read_image(example_photograph()), TRIED)
    return segmenter.predict(photograph[:, :, ::-1], protocol="native").ids


def _because(segmenter: Segmenter, reason: str, observer: Observer) -> Segmenter:
    observer.note(f"{segmenter.info.dtype}: {reason}")
    segmenter.info = replace(segmenter.info, dtype_reason=reason)
    return segmenter
