"""Untrained stand-in weights: every tensor drawn from its key alone, so that any machine makes the same ones.

They give features, offsets and logits of realistic size. Benchmarks, tests and self-checks run on them; a mask made
with them means nothing.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def _scale(key: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of the normal draw for a weight or table."""
    last = key.rsplit(".", 1)[-1]
    offset = ".conv_offset." in f".{key}"
    if last in ("rel_height", "rel_width"):
        return 0.2
    if last == "running_mean" or (last == "weight" and len(shape) == 1):
        return 0.1
    if last == "bias":
        return 0.5 if offset else 0.05
    if last != "weight" or len(shape) not in (2, 4):
        raise KeyError(f"no rule for the tensor {key} of shape {shape}")
    if len(shape) == 2:
        gain = 1.5 if offset else 1.0
    elif ".conv_seg." in f".{key}":
        gain = 1.0
    else:
        gain = 0.5 if key.startswith("neck.") else float(np.sqrt(2.0))
    return gain / float(np.sqrt(np.prod(shape[1:])))


def filled_tensor(key: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The stand-in for the state-dict entry `key`: drawn in float64 from a generator seeded with the key's CRC-32."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=dtype)
    random = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    if last == "running_var":
        values = 0.5 + random.random(shape)
    else:
        values = _scale(key, shape) * random.standard_normal(shape)
        if last == "weight" and len(shape) == 1:
            values = 1.0 + values
    return torch.from_numpy(np.asarray(values)).to(dtype)


def filled_state(model: nn.Module) -> dict[str, Tensor]:
    """A state dict for `model` made of stand-ins, keys in the model's order."""
    return {key: filled_tensor(key, tuple(value.shape), value.dtype) for key, value in model.state_dict().items()}
