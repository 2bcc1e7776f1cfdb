"""Segmenting moving images: reading, smoothing over time, measuring, writing."""
