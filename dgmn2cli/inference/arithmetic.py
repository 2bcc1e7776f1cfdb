"""A graph in its runtime, where windows lie, and from scores to probabilities of the final image, in NumPy alone.

The runner that lies beside an exported graph has no torch and must come to the same bits: so every product and every
sum is rounded by itself here, and nothing depends on which rows are computed together. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

OPEN_SIZES = 4  # of windows that OpenVINO keeps compiled
_SILENCED = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")  # by release; heeded where set before the import
_REPORTER = "openvino_telemetry"  # OpenVINO does without it where it is not installed


def load_runtime(name: str) -> Any:
    """The module `onnxruntime` or `openvino`, which sends nothing to its makers and leaves nothing in the home folder.

    Both do so by default, OpenVINO as it is imported. Where the program has imported it before, it stays as it is.

    Raises:
        ImportError: it is not installed.
    """
    for variable in _SILENCED:
        os.environ.setdefault(variable, "1")
    if name != "openvino" or _REPORTER in sys.modules:
        return import_module(name)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # Python's sign for what cannot be imported
    try:
        return import_module(name)
    finally:
        del sys.modules[_REPORTER]


def runtime_failures(name: str) -> tuple[type[Exception], ...]:
    """What the runtime `name` raises.

    Raises:
        ImportError: it is not installed.
    """
    if name == "openvino":
        return (RuntimeError,)
    raised = vars(load_runtime(name).capi.onnxruntime_pybind11_state).values()
    return (
        RuntimeError,
        ValueError,
        *(kind for kind in raised if isinstance(kind, type) and issubclass(kind, Exception)),
    )


def open_runtime(name: str, graph: bytes, taken: str, given: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """An ONNX file in `onnxruntime` or `openvino`, on the CPU: what maps its input `taken` to its output `given`.

    Raises:
        ImportError: the runtime is not installed; else what the runtime raises.
    """
    if name == "onnxruntime":
        onnxruntime = load_runtime(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what goes wrong is raised; nothing goes to stderr
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda values: np.asarray(session.run([given], {taken: values})[0])
    core = load_runtime(name).Core()
    # left alone, OpenVINO chooses bfloat16 on processors that have instructions for it
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1"})
    read = core.read_model(graph)

    @lru_cache(maxsize=OPEN_SIZES)  # compiled for one size it runs faster than for any
    def compiled(shape: tuple[int, ...]) -> Any:
        sized = read.clone()
        sized.reshape({taken: list(shape)})
        return core.compile_model(sized, "CPU")

    return lambda values: np.array(compiled(values.shape)({taken: values})[given])


@lru_cache(maxsize=64)
def source_rows(length: int, target: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upper and lower source row, and the lower one's weight, of each of `target` output rows, as PyTorch rounds.

    Returns:
        `(target,)` int64, int64, float32; not to be written to.
    """
    rows = np.arange(target, dtype=np.float32)
    if align_corners:
        position = rows * np.float32((length - 1) / (target - 1) if target > 1 else 0.0)
    else:
        half = np.float32(0.5)
        position = np.maximum((rows + half) * np.float32(length / target) - half, np.float32(0))
    upper = np.minimum(position.astype(np.int64), length - 1)
    return upper, np.minimum(upper + 1, length - 1), position - upper.astype(np.float32)


def resize_rows(
    scores: np.ndarray,
    size: tuple[int, int],
    rows: slice,
    *,
    align_corners: bool,
    above: int = 0,
    height: int | None = None,
) -> np.ndarray:
    """Rows `rows` of `scores` resized to `size`, `(C, rows, W)` float32, bilinear: first along columns, then rows.

    Args:
        scores: `(C, h, w)` float32; the whole map, or those of its rows that are needed, and any more.
        size: full output size `(H, W)`.
        rows: the output rows wanted, `start` and `stop` within 0..H.
        align_corners: the corner pixels' centres stay where they are; else the corners themselves.
        above: rows of the whole map that lie above those in `scores`.
        height: rows of the whole map; h if None.
    """
    height, width = height or scores.shape[1], scores.shape[2]
    if height == size[0]:
        scores = scores[:, rows.start - above : rows.stop - above]
    else:
        upper, lower, weight = (values[rows] for values in source_rows(height, size[0], align_corners))
        scores = _between(scores[:, upper - above], scores[:, lower - above], weight[:, None])
    if width == size[1]:
        return scores
    left, right, weight = source_rows(width, size[1], align_corners)
    return _between(scores[:, :, left], scores[:, :, right], weight)


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`first + (second - first) * weight`, in the memory of `second`."""
    second -= first
    second *= weight
    second += first
    return second


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixel of each window along one axis; the last window is pulled back so that it ends at the border."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(index * stride + crop, length) - crop, 0) for index in range(count)]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities `(C, ...)` float32 of scores `(C, ...)` over their first axis."""
    values = np.exp(scores - scores.max(0))
    values /= values.sum(0)
    return values
