"""Processes that work together: torchrun or launched here."""
