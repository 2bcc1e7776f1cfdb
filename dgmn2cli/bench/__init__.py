"""Measurements: what a network or an op costs on this machine, beside the published design, in one run."""
