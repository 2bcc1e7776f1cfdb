"""Measures what a window of each model takes beside the default model's, for the table of models in README.

Use: python docs/window_times.py [MODEL...]
Both models take turns on one thread, and CPU seconds are counted, so that other processes disturb little. Printed are
the median of the rounds' ratios and each of them.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import nn

from dgmn2cli import zoo
from dgmn2cli.bench.implementations import NetworkSpec, build, ours, random_images
from dgmn2cli.inference.load import resolve

ROUNDS = 2
SIDE = 769  # pixels of a window


def main() -> None:
    """Prints a line for each model."""
    torch.set_num_threads(1)
    used = ours(torch.device("cpu"), "float32", "auto")
    images, few = (random_images(1, side, side, used) for side in (SIDE, SIDE // 6))

    def network(key: str) -> nn.Module:
        model = resolve(key).config.model
        return build(NetworkSpec(key, model.backbone, model.head), used)

    def seconds(of: nn.Module) -> float:
        start = time.process_time()
        with torch.inference_mode():
            of(images)
        return time.process_time() - start

    def warm(of: nn.Module) -> nn.Module:
        with torch.inference_mode():
            of(few)
        return of

    default = zoo.load_zoo().default
    reference = warm(network(default))
    for key in sys.argv[1:] or [entry.key for entry in zoo.entries()]:
        measured = warm(network(key))
        pairs = [(seconds(measured), seconds(reference)) for _ in range(ROUNDS)]
        ratios = [own / other for own, other in pairs]
        spread = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{key} {statistics.median(ratios):.2f} of {default}'s {pairs[0][1]:.2f} s ({spread})", flush=True)


if __name__ == "__main__":
    main()
