"""Segments images with the graph beside this file, by the published test procedure, without torch.

Use: python run.py IMAGE... -o OUT [--ms-flip] [--protocol native] [--runtime openvino]
Needs NumPy, OpenCV, and ONNX Runtime or OpenVINO. Writes OUT/STEM_ids.png, class ids as palette indices.
Exit codes: 2 usage, or a protocol.json that this file cannot follow, 3 the graph is not the one that protocol.json
describes, 5 no runtime, it fails, or a file cannot be written, 6 bad image, 7 NaN or infinite logits, 130 Ctrl-C.
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

from dgmn2cli.inference.arithmetic import open_runtime, resize_rows, runtime_failures, softmax, window_starts

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


def procedure(protocol: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """What protocol.json and the command line say of the procedure; ends the program where it is not known here."""
    with suppress(LookupError, TypeError, ValueError, ArithmeticError):  # something is missing, or is no number
        taken, output, how = protocol["input"], protocol["output"], dict(protocol["inference"])
        how |= {"taken": taken["name"], "given": output["name"], "table": normal_table(taken["mean"], taken["std"])}
        how["palette"] = np.array(protocol["palette"], np.uint8).reshape(len(protocol["classes"]), 3)
        how |= {"batch": taken["batch"] or given.batch, "fill": taken["batch"] is not None}
        how["native"] = (given.protocol or how["protocol"]) == "native"
        how["ratios"] = [float(ratio) for ratio in how["ratios"]] if given.ms_flip else [1.0]
        how["flips"] = (False, True) if given.ms_flip and how["flip"] else (False,)
        form = taken["dtype"], taken["layout"], taken["channels"], output["kind"]
        fitting = how["native"] or ((given.protocol or how["protocol"]) == "paper" and min(how["scale"]) >= 1)
        if form == ("float32", "NCHW", "RGB", "logits") and fitting and 1 <= how["stride"] <= how["window"]:
            return how
    file = FOLDER / "protocol.json"
    fail(2, f"{file} is not as `dgmn2 export` writes it. Export it again, or use `dgmn2 infer --graph {FOLDER}`.")


def normal_table(mean: list[float], std: list[float]) -> np.ndarray:
    """(3, 256) float32: the normalised value of each byte, red green blue."""
    centred = np.arange(256, dtype=np.float32) - np.array(mean, np.float32)[:, None]
    return (centred * (1 / np.array(std, np.float32).astype(np.float64))[:, None]).astype(np.float32)


def fitted(height: int, width: int, scale: list[int]) -> tuple[int, int]:
    """Height and width of an image fitted into a scale, its shape kept."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def mean_logits(run: Run, image: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """(C, h, w) float32: the logits of overlapping windows of an image (h, w, 3) uint8 BGR, averaged."""
    (height, width), window, batch, table = image.shape[:2], how["window"], how["batch"], how["table"]
    tops, lefts = (window_starts(length, window, how["stride"]) for length in (height, width))
    boxes = [(slice(y, min(y + window, height)), slice(x, min(x + window, width))) for y in tops for x in lefts]
    sums, down, across = None, np.zeros((height, 1), np.float32), np.zeros(width, np.float32)
    for first in range(0, len(boxes), batch):
        group = boxes[first : first + batch]
        parts = [np.stack([table[c][image[..., 2 - c][box]] for c in range(3)]) for box in group]
        if how["native"] and min(height, width) < window:
            parts = [np.pad(p, ((0, 0), (0, window - p.shape[1]), (0, window - p.shape[2]))) for p in parts]
        if how["fill"]:  # the graph takes batches of one size only
            parts += parts[-1:] * (batch - len(parts))
        for (rows, columns), logits in zip(group, run(np.stack(parts)), strict=False):
            if sums is None:
                sums = np.zeros((len(how["palette"]), height, width), np.float32)
            if len(logits) != len(sums):
                fail(2, f"the graph gives {len(logits)} classes, protocol.json names {len(sums)}")
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


def segment(run: Run, image: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8 class ids of an image (H, W, 3) uint8 BGR."""
    (height, width), ratios, flips = image.shape[:2], how["ratios"], how["flips"]
    base = (width, height) if how["native"] else how["scale"]

    def views() -> Iterator[tuple[slice, np.ndarray]]:
        """Probabilities (C, rows, W) of each view of the image, a band of rows at a time."""
        for ratio in ratios:
            scale = [int(side * ratio) for side in base]
            size = (height, width) if how["native"] and ratio == 1.0 else fitted(height, width, scale)
            scaled = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
            for flip in flips:
                logits = mean_logits(run, scaled[:, ::-1] if flip else scaled, how)
                for top in range(0, height, max(1, BAND_PIXELS // width)):
                    rows = slice(top, min(top + max(1, BAND_PIXELS // width), height))
                    resized = resize_rows(logits, (height, width), rows, align_corners=how["align_corners"])
                    values = softmax(resized)
                    yield rows, values[:, :, ::-1] if flip else values

    ids = np.empty((height, width), np.uint8)
    if len(ratios) * len(flips) == 1:
        for rows, values in views():
            ids[rows] = values.argmax(0)
        return ids
    total = np.zeros((len(how["palette"]), height, width), np.float32)
    for rows, values in views():
        total[:, rows] += values
    total /= np.float32(len(ratios) * len(flips))
    return total.argmax(0).astype(np.uint8)


def read(name: str) -> np.ndarray | None:
    """The image in a file, (H, W, 3) uint8 BGR; None for no image and animations. Of a TIFF's pages, the first."""
    with suppress(OSError, cv2.error):  # not there; empty or too large
        if os.path.isfile(name):  # a pipe would never end
            data = np.fromfile(name, np.uint8)
            if bytes(data[:2]) in (b"II", b"MM") or cv2.imcount(name, cv2.IMREAD_COLOR) <= 1:
                return cv2.imdecode(data, cv2.IMREAD_COLOR)
    return None


def write_png(path: Path, ids: np.ndarray, palette: np.ndarray) -> None:
    """Writes (H, W) uint8 ids as a palette PNG, whole or not at all."""
    size, data = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], 8, 3, 0, 0, 0), b"\x89PNG\r\n\x1a\n"
    pixels = zlib.compress(np.pad(ids, ((0, 0), (1, 0))).tobytes())  # each row after a byte for "no filter"
    for kind, body in ((b"IHDR", size), (b"PLTE", palette.tobytes()), (b"IDAT", pixels), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        fail(5, f"cannot write {path}: {error.strerror}")


def main() -> None:
    """Segments the images that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("-o", "--out", type=Path, default=Path("dgmn2-output"), help="folder of the masks")
    parser.add_argument("--ms-flip", action="store_true", help="average six scales and their mirror images")
    parser.add_argument("--protocol", choices=["paper", "native"], help="published resize, or the image's own size")
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], default="onnxruntime", help="what runs it")
    parser.add_argument("--batch", type=int, default=1, help="windows at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    given = parser.parse_args()
    if not (given.batch >= 1 and 1 <= given.threads <= MAX_THREADS):
        parser.error(f"--batch is 1 or more, --threads 1 to {MAX_THREADS}")
    targets = [given.out / f"{Path(name).stem}_ids.png" for name in given.images]
    if len(set(targets)) < len(targets):
        fail(2, "two images have the same name; segment them into folders of their own")
    if set(map(os.path.realpath, targets)) & set(map(os.path.realpath, given.images)):
        fail(2, "a mask would overwrite an image; choose another folder with -o")
    protocol, graph = described()
    how, bad = procedure(protocol, given), list[str]()
    try:
        failures = runtime_failures(given.runtime)
    except ImportError:
        fail(5, f"{given.runtime} is not installed. Install it: pip install {given.runtime}")
    try:
        run = open_runtime(given.runtime, graph, how["taken"], how["given"], given.threads)
        given.out.mkdir(parents=True, exist_ok=True)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what cannot be read is said below
        for name, target in zip(given.images, targets, strict=True):
            if (image := read(name)) is None:
                bad.append(name)
                continue
            write_png(target, segment(run, image, how), how["palette"])
            print(target, flush=True)
    except failures as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        fail(5, f"{given.runtime} does not run the graph: {said}")
    if bad:
        fail(6, f"no images, or animations: {', '.join(bad)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail(130, "interrupted by Ctrl-C")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nor must Python try at its end
        sys.exit(141)
    except OSError as error:
        fail(5, f"cannot write {error.filename or 'standard output'}: {error.strerror}")
