"""Processes that work together, started by torchrun or here: ranks, devices, collectives, signals, the death of one."""
