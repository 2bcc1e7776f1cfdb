"""Owns the step from a configuration to a network; the only file of this package that sees configuration types."""

from __future__ import annotations

from dgmn2cli.config import ModelConfig
from dgmn2cli.model.segmentor import Segmentor


def build_segmentor(config: ModelConfig) -> Segmentor:
    """The network of a configuration, with fresh weights, in training mode."""
    return Segmentor(config.backbone, config.head, config.num_classes, config.drop_path)
