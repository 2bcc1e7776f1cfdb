"""Owns what is evaluated: a network by the name the user gave, loaded where it is needed, and what identifies a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dgmn2cli.config import InferenceConfig
from dgmn2cli.evaluate.report import DataInfo, Protocol
from dgmn2cli.inference.load import Recipe, assemble, weights_on_disk
from dgmn2cli.inference.segmenter import RunInfo, Segmenter
from dgmn2cli.zoo import ZooEntry, cache_dir, locate

Load = Callable[[str], Segmenter]  # device -> network; picklable


@dataclass(frozen=True)
class Subject:
    """A network to evaluate.

    Attributes:
        name: zoo key or configuration name.
        load: makes it on a device; picklable.
        inference: its configuration's test procedure.
        entry: its zoo entry, None for a configuration of the user's.
        known_sha256: the hash of the published weights, where it is known.
        how: what else its numbers depend on, by name.
    """

    name: str
    load: Load
    inference: InferenceConfig
    entry: ZooEntry | None = None
    known_sha256: str | None = None
    how: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadNetwork:
    """`assemble` with everything but the device; an object that can be sent to another process."""

    recipe: Recipe
    checkpoint: Path | None = None
    dtype: str = "float32"
    backend: str = "auto"
    exact_algebra: bool = True
    compiled: bool = False
    cache: Path | None = None

    def __call__(self, device: str) -> Segmenter:
        """The network on `device`; errors as `assemble`."""
        return assemble(
            self.recipe,
            self.checkpoint,
            device=device,
            dtype=self.dtype,
            backend=self.backend,
            exact_algebra=self.exact_algebra,
            compiled=self.compiled,
            cache=self.cache,
        )

    @property
    def name(self) -> str:
        """Zoo key or configuration name."""
        return self.recipe.entry.key if self.recipe.entry else self.recipe.config.name

    def on_disk(self) -> bool:
        """Whether the published weights are in the cache."""
        return self.recipe.entry is not None and locate(self.recipe.entry, cache_dir(self.cache)) is not None

    def subject(self) -> Subject:
        """What is evaluated by loading this.

        Raises:
            ResourceError, ConfigError: its published weights are wanted and not on disk, or there are none.
        """
        entry, known = self.recipe.entry, None
        if self.checkpoint is None:
            known = weights_on_disk(self.recipe, self.cache)[1]
        elif entry is not None:
            found = None if entry.sha256 else locate(entry, cache_dir(self.cache))
            known = entry.sha256 or (found.sha256 if found else None)
        return Subject(self.name, self, self.recipe.config.inference, entry, known, {"compiled": self.compiled})


def run_identity(
    info: RunInfo, protocol: Protocol, data: DataInfo, subject: Subject, save_preds: Path | None
) -> dict[str, object]:
    """All that the confusion matrix (and the kept predictions) depend on, by the names a user knows.

    Where the data lies and how many processes work is not in it: neither changes the matrix.
    """
    return {
        "model": subject.name,
        "checkpoint sha256": info.sha256,
        "device": info.device.split(":")[0],
        "dtype": info.dtype,
        "backend": info.backend,
        "form": info.form,
        **subject.how,
        **{f"protocol {name}": value for name, value in asdict(protocol).items()},
        "split": data.split,
        "pictures": data.pictures,
        "data sha256": data.sha256,
        "save-preds": str(save_preds.absolute()) if save_preds is not None else None,
    }
