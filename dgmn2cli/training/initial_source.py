"""Where the first weights of a training come from. Needs no torch, so that what is missing is said at once."""

from __future__ import annotations

import os
from pathlib import Path

from dgmn2cli.errors import ResourceError
from dgmn2cli.files import absence
from dgmn2cli.zoo import cache_dir, load_zoo, locate

IMAGENET, SCRATCH = "imagenet", "scratch"


def find_initial_weights(
    init: str, backbone: str, zoo_file: Path | None, cache: Path | None
) -> tuple[Path, str | None] | None:
    """The checkpoint that `init` (`imagenet`, `scratch` or a path) means here, and its hash if known; None: scratch.

    Nothing is read but the cache's index.

    Args:
        init: the configuration's `train.init`.
        backbone: the backbone's size.
        zoo_file, cache: the manifest and the cache folder; the usual ones if None.

    Raises:
        ResourceError: the ImageNet weights, or the file, are not there; says both ways out.
    """
    if init == SCRATCH:
        return None
    if init != IMAGENET:
        path = Path(init)
        if not os.path.exists(path):
            hint = "Give the path of a checkpoint, or --from imagenet or --from scratch."
            raise ResourceError("the first weights are not there", where=path, why=absence(path), hint=hint)
        return path, None
    entry = load_zoo(zoo_file).backbone(backbone)
    found = locate(entry, cache_dir(cache))
    if found is None:
        raise ResourceError(
            "the ImageNet weights are not on disk",
            where=entry.key,
            why="a training starts from them unless told otherwise",
            hint=f"Get them with `dgmn2 download {entry.key}`, or start without them: --from scratch.",
        )
    return found.path, found.sha256
