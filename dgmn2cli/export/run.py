"""Segments images with the graph beside this file, by the published test procedure, without torch.

Use: python run.py IMAGE... -o OUT [--ms-flip] [--protocol native] [--runtime openvino]
Needs NumPy, OpenCV, and ONNX Runtime or OpenVINO. Writes OUT/STEM_ids.png, class ids as palette indices.
Exit codes: 2 usage, 3 the graph is not the one that protocol.json describes, 5 no runtime or a file cannot be written,
6 bad image, 7 the graph gave NaN or infinity.
"""

import argparse
import hashlib
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np

from dgmn2cli.inference.arithmetic import open_runtime, resize_rows, softmax, window_starts

FOLDER = Path(__file__).resolve().parent
MAX_THREADS = 1024
BAND_PIXELS = 1 << 18  # of the image that are turned into probabilities at a time
Run = Callable[[np.ndarray], np.ndarray]  # (B, 3, h, w) float32 to logits (B, C, h, w) float32


def fail(code: int, message: str) -> NoReturn:
    """Ends the program."""
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(code)


def described() -> tuple[dict[str, Any], bytes]:
    """What protocol.json says, and the graph, if it is the one that was hashed."""
    with suppress(OSError, ValueError, LookupError, TypeError):  # missing or damaged
        protocol = json.loads((FOLDER / "protocol.json").read_bytes())
        graph = (FOLDER / protocol["graph"]).read_bytes()
        if hashlib.sha256(graph).hexdigest() == protocol["graph_sha256"]:
            return protocol, graph
    fail(3, f"{FOLDER} does not hold a graph and the protocol.json that describes it. Export it again.")


def normal_table(mean: list[float], std: list[float]) -> np.ndarray:
    """(3, 256) float32: the normalised value of each byte, red green blue."""
    centred = np.arange(256, dtype=np.float32) - np.array(mean, np.float32)[:, None]
    return (centred * (1 / np.array(std, np.float32).astype(np.float64))[:, None]).astype(np.float32)


def fitted(height: int, width: int, scale: list[int]) -> tuple[int, int]:
    """Height and width of an image fitted into a scale, its shape kept."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def mean_logits(run: Run, image: np.ndarray, table: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """(C, h, w) float32: the logits of overlapping windows of an image (h, w, 3) uint8 BGR, averaged."""
    (height, width), window, batch = image.shape[:2], how["window"], how["batch"]
    tops, lefts = (window_starts(length, window, how["stride"]) for length in (height, width))
    boxes = [(slice(y, min(y + window, height)), slice(x, min(x + window, width))) for y in tops for x in lefts]
    sums, down, across = None, np.zeros((height, 1), np.float32), np.zeros(width, np.float32)
    for first in range(0, len(boxes), batch):
        group = boxes[first : first + batch]
        parts = [np.stack([table[c][image[..., 2 - c][box]] for c in range(3)]) for box in group]
        if how["pad"] and min(height, width) < window:
            parts = [np.pad(p, ((0, 0), (0, window - p.shape[1]), (0, window - p.shape[2]))) for p in parts]
        if how["fill"]:  # the graph takes batches of one size only
            parts += parts[-1:] * (batch - len(parts))
        for (rows, columns), logits in zip(group, run(np.stack(parts)), strict=False):
            if sums is None:
                sums = np.zeros((len(logits), height, width), np.float32)
            sums[:, rows, columns] += logits[:, : rows.stop - rows.start, : columns.stop - columns.start]
    for top in tops:
        down[top : top + window] += 1
    for left in lefts:
        across[left : left + window] += 1
    assert sums is not None
    sums /= down * across
    if not np.isfinite(sums).all():
        fail(7, "the graph gave NaN or infinite logits")
    return sums


def segment(run: Run, image: np.ndarray, protocol: dict[str, Any], how: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8 class ids of an image (H, W, 3) uint8 BGR."""
    height, width = image.shape[:2]
    procedure, table = protocol["inference"], normal_table(protocol["input"]["mean"], protocol["input"]["std"])
    base = (width, height) if how["pad"] else procedure["scale"]
    ratios = procedure["ratios"] if how["ms_flip"] else [1.0]
    flips = (False, True) if how["ms_flip"] and procedure["flip"] else (False,)

    def views() -> Iterator[tuple[slice, np.ndarray]]:
        """Probabilities (C, rows, W) of each view of the image, a band of rows at a time."""
        for ratio in ratios:
            scale = [int(side * ratio) for side in base]
            size = (height, width) if how["pad"] and ratio == 1.0 else fitted(height, width, scale)
            scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
            for flip in flips:
                logits = mean_logits(run, scaled[:, ::-1] if flip else scaled, table, how)
                for top in range(0, height, max(1, BAND_PIXELS // width)):
                    rows = slice(top, min(top + max(1, BAND_PIXELS // width), height))
                    resized = resize_rows(logits, (height, width), rows, align_corners=procedure["align_corners"])
                    values = softmax(resized)
                    yield rows, values[:, :, ::-1] if flip else values

    ids = np.empty((height, width), np.uint8)
    if len(ratios) * len(flips) == 1:
        for rows, values in views():
            ids[rows] = values.argmax(0)
        return ids
    total = np.zeros((len(protocol["classes"]), height, width), np.float32)
    for rows, values in views():
        total[:, rows] += values
    total /= np.float32(len(ratios) * len(flips))
    return total.argmax(0).astype(np.uint8)


def write_png(path: Path, ids: np.ndarray, palette: list[list[int]]) -> None:
    """Writes (H, W) uint8 ids as a palette PNG, whole or not at all."""
    size = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], 8, 3, 0, 0, 0)
    rows = np.pad(ids, ((0, 0), (1, 0))).tobytes()  # each row after a byte for "no filter"
    colours, pixels = np.array(palette, np.uint8).tobytes(), zlib.compress(rows)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", size), (b"PLTE", colours), (b"IDAT", pixels), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def main() -> None:
    """Segments the images that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("-o", "--out", type=Path, default=Path("dgmn2-output"), help="folder of the masks")
    parser.add_argument("--ms-flip", action="store_true", help="average six scales and their mirror images")
    parser.add_argument("--protocol", choices=["paper", "native"], help="published resize, or the image's own size")
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--batch", type=int, default=1, help="windows at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if not (given.batch >= 1 and 1 <= given.threads <= MAX_THREADS):
        parser.error(f"--batch is 1 or more, --threads 1 to {MAX_THREADS}")
    targets = [given.out / f"{Path(name).stem}_ids.png" for name in given.images]
    if len(set(targets)) < len(targets):
        fail(2, "two images have the same name; segment them into folders of their own")
    protocol, graph = described()
    try:
        names = protocol["input"]["name"], protocol["output"]["name"]
        run, fixed = open_runtime(given.runtime, graph, *names, given.threads), protocol["input"]["batch"]
    except ImportError:
        fail(5, f"{given.runtime} is not installed. Install it: pip install {given.runtime}")
    how = {"batch": fixed or given.batch, "fill": fixed is not None, "ms_flip": given.ms_flip}
    how |= {name: protocol["inference"][name] for name in ("window", "stride")}
    how["pad"] = (given.protocol or protocol["inference"]["protocol"]) == "native"
    given.out.mkdir(parents=True, exist_ok=True)
    bad = []
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what cannot be read is said below
    for name, target in zip(given.images, targets, strict=True):
        image = None
        with suppress(OSError, cv2.error):  # not there; empty or too large
            image = cv2.imdecode(np.fromfile(name, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            bad.append(name)
            continue
        write_png(target, segment(run, image, protocol, how), protocol["palette"])
        print(target, flush=True)
    if bad:
        fail(6, f"cannot read {', '.join(bad)}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        fail(5, f"cannot write {error.filename}: {error.strerror}")
