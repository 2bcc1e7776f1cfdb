"""The network rewritten for inference: the same logits, faster."""

from dgmn2cli.model.fused.layers import packing_available

__all__ = ["packing_available"]
