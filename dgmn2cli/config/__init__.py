"""Configurations: the schema, loading with all faults at once, writing, and reading mmcv-style files unexecuted."""

from __future__ import annotations

from dgmn2cli.config.load import is_path, load_config, load_config_text, published_names
from dgmn2cli.config.mmcv import read_mmcv_file, read_mmcv_text
from dgmn2cli.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    InferenceConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Setting,
    TrainConfig,
    config_schema,
    settings,
)
from dgmn2cli.config.text import config_difference, config_to_toml, to_toml

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "InferenceConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "Setting",
    "TrainConfig",
    "config_difference",
    "config_schema",
    "config_to_toml",
    "is_path",
    "load_config",
    "load_config_text",
    "published_names",
    "read_mmcv_file",
    "read_mmcv_text",
    "settings",
    "to_toml",
]
